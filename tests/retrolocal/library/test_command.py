"""`retrolocal library ...` as a user runs it: exit codes, text, JSON, one line for an error."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retrolocal.cli import main
from retrolocal.default_model import default_model
from retrolocal.errors import ModelError
from retrolocal.library import Library


@pytest.fixture
def shelf(library: Library, sample: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A document, a corpus that shares its segments, and an ingest that was interrupted."""
    sample.Book().ingest(library)
    sample.Book(corpus="plays", segments=4).ingest(library)
    sample.Book(name="late.txt", segments=6).ingest(library, until=5)
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(library.path))
    return library


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON that a command prints."""
    assert main(["library", *words, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def text(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[str]:
    """The lines that a command prints."""
    assert main(["library", *words]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def refusal(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """The one line of an error."""
    assert main(["library", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("retrolocal: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_list(shelf: Library, sample: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, "list")
    assert facts["path"] == str(shelf.path)
    assert facts["problems"] == []
    entries = {entry["name"]: entry for entry in facts["entries"]}
    assert set(entries) == {"book.txt", "plays", "late.txt"}
    assert list(entries["plays"]) == [
        *("name", "key", "kind", "state", "tokens", "segments", "documents", "bytes"),
        *("model", "created", "last_used", "unlike"),
    ]
    assert (entries["plays"]["kind"], entries["plays"]["tokens"]) == ("corpus", 167)
    assert (entries["late.txt"]["state"], entries["late.txt"]["tokens"]) == ("unfinished", 200)
    texts = tuple(sample.document(name, name) for name in ("one.txt", "two.txt"))
    sample.Book(corpus="both", documents=texts).ingest(shelf)
    lines = text(capsys, "list")
    names = [name.strip() for name in lines[0].strip("|").split("|")]
    assert names == ["name", "kind", "state", "files", "tokens", "size", "last used", "key"]
    files = {line.split("|")[1].strip(): line.split("|")[4].strip() for line in lines[2:]}
    assert files == {"book.txt": "1", "plays": "1", "late.txt": "1", "both": "2"}
    assert any("plays" in line and "167" in line and "KiB" in line for line in lines)


def test_the_model_that_read_an_entry_is_shown(
    library: Library,
    sample: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {
        "a.txt": "org/name@main",
        "b.txt": "/home/reader/my-model",
        "c.txt": 7,
        "d.txt": "a\tb",
    }
    for name, model in models.items():
        sample.Book(name=name, facts={"model": model}).ingest(library)
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(library.path))
    found = {entry["name"]: entry["model"] for entry in answer(capsys, "list")["entries"]}
    assert found == {**models, "c.txt": None, "d.txt": None}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text(capsys, "list")]
    model = rows[0].index("model")
    assert {row[0]: row[model] for row in rows[2:]} == {
        **{"a.txt": "org/name@main", "b.txt": "my-model"},
        **{"c.txt": "", "d.txt": ""},
    }
    assert "model: /home/reader/my-model" in text(capsys, "show", "b.txt")
    assert "a\tb" not in "\n".join(text(capsys, "show", "d.txt"))


def test_a_corpus_is_answered_by_the_model_that_read_it(
    shelf: Library, sample: ModuleType, tiny_model: Path
) -> None:
    own = str(tiny_model)
    facts = {"model": own}
    sample.Book(corpus="complete", facts=facts).ingest(shelf)
    sample.Book(corpus="begun", segments=9, facts=facts).ingest(shelf, until=1)
    sample.Book(name="a document", facts=facts).ingest(shelf)
    for corpus in ("complete", "begun"):
        chosen = default_model(corpus=corpus)
        assert chosen.model == own
        assert f"using {own}, which {corpus} was read with" in chosen.note
    for corpus in ("plays", "a document", "nowhere"):
        assert default_model(corpus=corpus) == default_model()
    for gone in ("org/own", f"{own}/gone"):
        sample.Book(corpus="lost", facts={"model": gone}).ingest(shelf)
        with pytest.raises(ModelError, match=f"lost was read with {gone}, which is not here any m"):
            default_model(corpus="lost")
        shelf.remove("lost")


def test_entries_of_one_name_are_told_apart(
    shelf: Library, sample: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sample.Book().ingest(shelf, identity=replace(sample.IDENTITY, dtype="bfloat16"))
    unlike = {one["unlike"] for one in answer(capsys, "list")["entries"]}
    assert unlike == {"", "dtype float32", "dtype bfloat16"}
    lines = [line for line in text(capsys, "list") if "dtype" in line]
    assert len(lines) == 2
    assert all("book.txt" in line for line in lines)


def test_an_entry_is_running_only_while_it_is_written(
    shelf: Library, sample: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def states() -> tuple[str, bool]:
        found = {entry["name"]: entry["state"] for entry in answer(capsys, "list")["entries"]}
        assert found["book.txt"] == found["plays"] == "complete"
        assert answer(capsys, "show", "late.txt")["state"] == found["late.txt"]
        return found["late.txt"], any("being read" in line for line in text(capsys, "list"))

    book = sample.Book(name="late.txt", segments=6)
    assert states() == ("unfinished", False)
    with shelf.longest_prefix(sample.IDENTITY, book.ids) as known:
        writing = shelf.write(sample.IDENTITY, book.texts, prefix=known)
    with writing:
        assert states() == ("running", True)
    assert states() == ("unfinished", False)
    # What a killed process leaves in the file.
    (shelf.path / "writer").write_text(f"1 {writing.key}\n", "ascii")
    assert states() == ("unfinished", False)


def test_an_empty_library_says_how_to_fill_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "retrolocal ingest FILE" in text(capsys, "list")[0]
    assert answer(capsys, "list")["entries"] == []


def test_show(shelf: Library, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, "show", "book.txt")
    assert facts["tokens"] == 127
    assert facts["identity"]["dtype"] == "float32"
    assert facts["documents"][0]["name"] == "book.txt"
    assert facts["documents"][0]["extractor"] == "text 1"
    assert facts["facts"] == {"positions": 127}
    assert answer(capsys, "show", facts["key"][:9])["key"] == facts["key"]
    lines = text(capsys, "show", "book.txt")
    assert "tokens: 127" in lines
    files = next(i for i, line in enumerate(lines) if line.startswith("| book.txt"))
    assert lines[files + 2] == "what it was read with:"
    assert any(line.startswith("rope.theta: ") for line in lines[files:])


def test_verify(shelf: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "verify", "book.txt")["problems"] == []
    assert answer(capsys, "verify", "--deep", "book.txt")["deep"] is True
    assert text(capsys, "verify", "book.txt", "--deep")[0].endswith("every byte is as written")
    path = shelf.path / "segments" / f"{shelf.find('book.txt').segments[0].key}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert answer(capsys, "verify", "book.txt")["problems"] == []
    [problem] = text(capsys, "verify", "book.txt", "--deep", code=1)
    assert str(path) in problem
    assert answer(capsys, "verify", "plays", "--deep", code=1)["problems"] == [problem]


def test_rm_and_gc(shelf: Library, capsys: pytest.CaptureFixture[str]) -> None:
    removed = answer(capsys, "rm", "plays")
    assert removed["removed"] == "plays"
    assert removed["files"] > 0
    assert removed["bytes"] > 0
    assert "no entry 'plays'" in refusal(capsys, "rm", "plays")
    assert text(capsys, "gc") == ["0 files deleted, 0 bytes freed"]
    assert "late.txt: removed" in text(capsys, "rm", "late.txt")[0]
    assert answer(capsys, "gc") == {"files": 0, "bytes": 0, "in_use": 0, "blocked": ""}
    with shelf.open("book.txt"):
        assert "is open in another program" in refusal(capsys, "rm", "book.txt")


def test_path(shelf: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert text(capsys, "path") == [str(shelf.path)]
    assert answer(capsys, "path") == {"path": str(shelf.path)}


def test_a_damaged_entry(shelf: Library, capsys: pytest.CaptureFixture[str]) -> None:
    key = shelf.find("book.txt").key
    path = shelf.path / "entries" / f"{key}.json"
    path.write_bytes(path.read_bytes()[1:])
    facts = answer(capsys, "list", code=1)
    assert len(facts["entries"]) == 2
    assert str(path) in facts["problems"][0]
    assert str(path) in text(capsys, "list", code=1)[-1]
    assert "nothing was removed" in refusal(capsys, "gc")
    remedy = f"remove it (retrolocal library rm {key[:12]}) and ingest again"
    assert facts["problems"][0].endswith(remedy)
    assert str(path) in text(capsys, "verify", key, code=1)[0]
    for command in ("show", "verify", "rm"):
        said = refusal(capsys, command, "book.txt")
        assert f"it may be an entry that cannot be read, {key[:12]}: " in said
    assert text(capsys, "rm", key[:12])[0].startswith(f"{key[:12]}: removed")
    assert len(answer(capsys, "list")["entries"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a command"),
        (["bake"], "has no command 'bake'"),
        (["show"], "takes one name or key, and none was given"),
        (["rm", "a", "b"], "takes one name or key, and 2 were given"),
        (["list", "a"], "takes no name, and 'a' was given"),
        (["verify", "a", "--fast"], "has no option --fast"),
        (["gc", "--deep"], "has no option --deep"),
    ],
    ids=str,
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refusal(capsys, *words, code=2)


def test_a_library_open_to_others(shelf: Library, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.path.chmod(0o755)
    for words in (["list"], ["show", "book.txt"], ["gc"], ["rm", "book.txt"]):
        assert "chmod -R go=" in refusal(capsys, *words)
    assert text(capsys, "path") == [str(shelf.path)]


def test_no_command_loads_torch(shelf: Library) -> None:
    code = (
        "import sys; from retrolocal.cli import main;"
        "codes = [main(['library', *words.split()]) for words in sys.argv[1:]];"
        "sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    words = ("list", "show plays", "verify plays --deep", "rm plays", "gc", "path")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_of_two_entries_asks_for_a_key(
    shelf: Library, sample: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = sample.Book(documents=(sample.document("book.txt", "another text"),))
    other.ingest(shelf)
    assert "2 entries called 'book.txt'; give the key of one" in refusal(capsys, "rm", "book.txt")
