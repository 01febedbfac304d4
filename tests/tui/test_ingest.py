"""`retrolocal ingest` says what it will take, before it starts."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrolocal import crossover
from retrolocal.cli import main
from retrolocal.generate import Progress
from retrolocal.library import Library
from retrolocal.memory import MemoryEstimate
from retrolocal.report import Report
from retrolocal.room import MEASURING, Forecast
from retrolocal.shelf import corpus_documents
from retrolocal.tui import ingest
from retrolocal.tui.ingest import _expected, ready_line
from retrolocal.tui.time_left import Pace, TimeLeft, about, spoken

Captured = pytest.CaptureFixture[str]


def test_a_pace_is_what_was_fitted() -> None:
    clock = TimeLeft()
    assert clock.fit() is None
    for piece in range(6):
        done = 1000 * piece
        clock.advance(done, 9000, now=done * 1e-3 + done**2 * 1e-6)
    pace = clock.fit()
    assert pace is not None
    assert pace.intercept == pytest.approx(1e-3)
    assert pace.slope == pytest.approx(2e-6)
    assert pace.seconds(10_000) == pytest.approx(10 + 100)
    assert pace.seconds(10_000, 4_000) == pytest.approx(pace.seconds(10_000) - pace.seconds(4_000))
    assert Pace(1e-3, 0.0).seconds(0) == 0.0
    assert (about(131), spoken(3700)) == ("about 2:10", "about 1:01 h left")


def test_the_second_text_is_told_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an earlier run of the tests measured is not remembered here.
    monkeypatch.setattr("retrolocal.remembered.cache_dir", lambda: tmp_path / "cache")
    words = [f"w{number}" for number in range(2600)]
    for seed in (1, 2):
        (tmp_path / f"{seed}.txt").write_text(" ".join(words[seed:]), encoding="utf-8")

    def starts(name: str) -> dict[str, object]:
        assert main(["ingest", str(tmp_path / name), "--json", "-b", "2048"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        [start] = [event for event in found if event["event"] == "start"]
        assert start["tokens"] > 8192
        for fact in ("memory_bytes", "free_bytes"):
            assert start[fact] > 0
        assert (start["disk_bytes"] > 0) == (not start["kept"])
        return start  # type: ignore[no-any-return]

    first, second = starts("1.txt"), starts("2.txt")
    assert first["seconds_expected"] is None
    assert 0 < second["seconds_expected"] < 3600  # type: ignore[operator]
    again = starts("2.txt")
    assert (again["kept"], again["seconds_expected"]) == (True, None)


def test_what_is_measured_once_is_announced(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.remembered.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(crossover, "_known", {})
    monkeypatch.setattr(crossover, "_decode", lambda *which: 1)
    monkeypatch.setattr(crossover, "_prefill", lambda *which: 1)
    for name, words in (("short", 100), ("long", 2600), ("longer", 2700)):
        path = tmp_path / f"{name}.txt"
        path.write_text(" ".join(f"w{number}" for number in range(words)), encoding="utf-8")
        assert main(["ingest", "-m", "builtin", str(path)]) == 0
        first = capsys.readouterr().err.splitlines()[0]
        assert (first == MEASURING) == (name == "long")


@pytest.mark.parametrize("words", [100, 2600])
@pytest.mark.parametrize("cache", ["auto", "wave", "dense"])
def test_measuring_before_a_text_is_looked_for_is_announced(
    cache: str, words: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.remembered.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(crossover, "_known", {})
    order = list[str]()

    def measured(*which: object) -> int:
        order.append("measured")
        return 1

    for name in ("_decode", "_prefill"):
        monkeypatch.setattr(crossover, name, measured)
    monkeypatch.setattr(Report, "remark", lambda report, line: order.append(line))
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{number}" for number in range(words)), encoding="utf-8")
    command = ["ingest", "-m", "builtin", "--prefill", "wave", "--cache", cache, str(path)]
    assert main(command) == 0
    expected = [] if cache == "dense" else [MEASURING, "measured", "measured"]
    assert [line for line in order if line in (MEASURING, "measured")] == expected


@pytest.mark.parametrize(("words", "kept"), [(1200, 0), (2200, 8260)])
def test_what_an_interruption_left_is_said(
    words: int,
    kept: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "long.txt"
    path.write_text(" ".join(f"w{number}" for number in range(words)), encoding="utf-8")
    command = ["ingest", "-m", "builtin", "--cache", "dense", "-b", "2048", str(path)]
    show, shown = ingest._show, list[int]()

    def interrupting(progress: Progress, *rest: Any) -> None:
        show(progress, *rest)
        if not shown:
            signal.raise_signal(signal.SIGINT)
        shown.append(progress.done)

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "_show", interrupting)
        assert main(command) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    if kept:
        assert shown == [2048, 4096, 6144, 8192, kept]
        assert re.fullmatch(r"stopped; 8,260 of [\d,]+ tokens are kept: start .* to go on", said)
    else:
        assert shown == [2048]
        assert said.startswith("stopped; nothing is kept of fewer than 8,260 tokens: ")
    assert main([*command, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [start] = [event for event in found if event["event"] == "start"]
    assert start["kept_tokens"] == kept
    assert found[-1]["read_tokens"] == start["tokens"] - kept


def test_what_is_left_is_said_with_its_units() -> None:
    memory = MemoryEstimate(weights=0, cache=5 << 20, workspace=3 << 20)
    forecast = Forecast(tokens=136_616, kept=0, memory=memory, disk=165 << 10)
    assert _expected(forecast, free=70 << 30, memory=8 << 20, seconds=131) == (
        "136,616 tokens: about 165.0 KiB on disk (70.0 GiB free), 8.0 MiB of memory while reading, "
        "about 2:10 at the pace of an earlier run"
    )
    assert _expected(replace(forecast, kept=57_412), 1 << 30, 8 << 20, None).startswith(
        "57,412 of 136,616 tokens are kept; 79,204 to read, about 165.0 KiB on disk"
    )
    everything = _expected(replace(forecast, kept=136_616), 1 << 30, 8 << 20, None)
    assert everything == "136,616 tokens, which the library has"


@pytest.mark.parametrize(
    ("paths", "options", "command"),
    [
        (["a.txt"], {}, "a.txt is ready: retrolocal chat -f a.txt"),
        (["a b.txt"], {"model": "builtin"}, "chat -m builtin -f 'a b.txt'"),
        (["a.txt", "./a.txt", "b.txt"], {}, "2 documents are ready: retrolocal chat -f a.txt -f b"),
        (
            ["-"],
            {},
            "stdin is ready: retrolocal chat -f - -p QUESTION, with the same text on stdin",
        ),
        (["-"], {"corpus": "my notes"}, "my notes is ready: retrolocal chat --corpus 'my notes'"),
        (["."], {}, "3 documents are ready: retrolocal chat with -f for each of them"),
        (["a.txt", "copy.txt"], {}, "with -f for each of them"),
    ],
)
def test_the_command_that_asks_about_it_works(
    paths: list[str],
    options: dict[str, str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    names = {
        "a.txt ./a.txt b.txt": ["a.txt", "b.txt"],
        ".": ["x/a.txt", "x/b.txt", "x/c.txt"],
        "a.txt copy.txt": ["a.txt"],
        "-": ["stdin"],
    }.get(" ".join(paths), paths)
    arguments = Namespace(paths=paths, **{"model": None, "corpus": None} | options)
    assert command in ready_line(arguments, names)


def test_what_was_ingested_from_stdin_is_found_by_the_same_text(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(f"w{number}" for number in range(200)).encode()

    def given() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    given()
    assert main(["ingest", "-m", str(tiny_model), "-"]) == 0
    command = capsys.readouterr().err.rpartition("is ready: ")[2].partition(",")[0]
    words = shlex.split(command)[1:]
    assert "QUESTION" in words
    given()
    assert main([*words, "-n", "1"]) == 0
    read, total = re.findall(r"prompt (\d+) of (\d+)", capsys.readouterr().err)[0]
    assert int(read) < 50 < 500 < int(total)


@pytest.mark.parametrize("words", [["--json"], []])
def test_a_text_that_has_another_name_in_the_library_is_called_by_it(
    words: list[str], tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    told = 'copy.txt: the same text is in the library as "book.txt"'
    for name in ("book.txt", "copy.txt", "book.txt"):
        (tmp_path / name).write_text("ten green bottles", encoding="utf-8")
        assert main(["ingest", str(tmp_path / name), "-m", str(tiny_model), *words]) == 0
        captured = capsys.readouterr()
        assert (told in (captured.out + captured.err).replace("\\", "")) == (name == "copy.txt")


def test_standard_input_is_no_other_name_of_a_text(
    tiny_model: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, book = b"ten green bottles", tmp_path / "book.txt"
    book.write_bytes(text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert main(["ingest", "-", "-m", str(tiny_model), "--cache", "wave"]) == 0
    capsys.readouterr()
    assert main(["ingest", str(book), "-m", str(tiny_model), "--cache", "dense"]) == 0
    assert "the same text" not in capsys.readouterr().err


def remarks(paths: Sequence[Path], corpus: str, model: Path, capsys: Captured) -> list[str]:
    """Of an `ingest` of these, before it begins to read."""
    words = ["ingest", *map(str, paths), "--corpus", corpus, "-m", str(model), "--json"]
    assert main(words) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    start = [event["event"] for event in events].index("start")
    assert "remark" not in [event["event"] for event in events[start:]]
    return [event["text"] for event in events[:start] if event["text"] != MEASURING]


def test_a_file_that_changed_is_said_to_be_there_twice(
    tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("one", encoding="utf-8")
    assert remarks([book], "my notes", tiny_model, capsys) == []
    book.write_text("one, two", encoding="utf-8")
    assert remarks([book], "my notes", tiny_model, capsys) == [
        "book.txt: my notes has an older text of this name, and both will be in it; for the new "
        "one alone: retrolocal library rm 'my notes', then ingest all of its files again"
    ]
    assert [document.name for document in corpus_documents(Library(), "my notes")] == [
        "book.txt",
        "book.txt",
    ]
    assert remarks([book], "my notes", tiny_model, capsys) == ["book.txt is there already"]


def test_a_corpus_needs_its_model_named_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    book, more = tmp_path / "book.txt", tmp_path / "more.txt"
    book.write_text("one")
    more.write_text("two")
    monkeypatch.chdir(tiny_model.parent)
    assert main(["ingest", str(book), "--corpus", "notes", "-m", f"./{tiny_model.name}"]) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    for words in (
        ["ingest", str(more), "--corpus", "notes"],
        ["chat", "--corpus", "notes", "-p", "x", "-n", "1"],
    ):
        assert main(words) == 0
        assert f"using {tiny_model}, which notes was read with" in capsys.readouterr().err
    assert [one.name for one in Library().find("notes").documents] == ["book.txt", "more.txt"]


@pytest.mark.parametrize("removed", [True, False])
def test_a_corpus_that_lost_a_part_is_read_again(
    removed: bool, tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("one and two " * 200, encoding="utf-8")
    assert remarks([book], "notes", tiny_model, capsys) == []
    library = Library()
    tail = library.find("notes").tail
    assert tail is not None
    [path] = library.path.rglob(f"{tail.key}*")
    if removed:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
    found = remarks([book], "notes", tiny_model, capsys)
    assert found[0] == "book.txt is there already"
    assert path.name in found[1]
    assert found[1].endswith("from there on the document is read again")
    assert library.verify("notes", deep=True).problems == ()


def without_text(name: str) -> Path:
    """Removes the first text of an entry."""
    library = Library()
    path = library.path / "objects" / library.find(name).documents[0].text.name
    path.unlink()
    return path


def test_a_text_that_is_gone_is_put_there_again(
    tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("one and two", encoding="utf-8")
    words = ["ingest", str(book), "-m", str(tiny_model)]
    assert main(words) == 0
    gone = without_text("book.txt")
    assert Library().verify("book.txt").problems
    assert main(words) == 0
    assert f"{gone} is missing" in capsys.readouterr().err
    assert Library().verify("book.txt", deep=True).problems == ()


def test_of_a_corpus_it_is_said_how_its_texts_come_back(
    tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("one and two", encoding="utf-8")
    remarks([book], "my notes", tiny_model, capsys)
    gone = without_text("my notes")
    words = ["ingest", str(book), "--corpus", "my notes", "-m", str(tiny_model)]
    assert main(words) == 1
    said = capsys.readouterr().err
    by_key = ["chat", "--corpus", Library().find("my notes").key[:12], "-m", str(tiny_model)]
    assert main([*by_key, "-p", "x"]) == 1
    assert capsys.readouterr().err == said
    assert f"{gone} is missing" in said
    for command in ("show", "rm"):
        assert f"retrolocal library {command} 'my notes'" in said
    assert said.endswith("ingest them again with --corpus 'my notes'\n")
    assert said.rstrip() == f"retrolocal: {Library().verify('my notes').problems[0]}"
    for command in ("show", "rm"):
        assert main(["library", command, "my notes"]) == 0
    assert main(words) == 0
    assert Library().verify("my notes", deep=True).problems == ()


def test_a_corpus_whose_manifest_is_damaged_is_not_begun_anew_in_silence(
    tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("one", encoding="utf-8")
    remarks([book], "notes", tiny_model, capsys)
    [manifest] = (Library().path / "entries").glob("*.json")
    manifest.write_bytes(manifest.read_bytes().replace(b"notes", b"motes"))
    [found] = remarks([book], "notes", tiny_model, capsys)
    assert found.startswith("notes is begun anew; if it was there before, it is one of the entries")


def test_of_many_files_that_are_there_a_few_are_named(
    tiny_model: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.txt").write_text("all alike", encoding="utf-8")
    assert remarks([folder], "many", tiny_model, capsys) == [
        "folder/01.txt, folder/02.txt, folder/03.txt, folder/04.txt and 15 more are there already"
    ]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 256])
def test_a_name_that_is_none_is_refused_before_a_text_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", str(tmp_path / "none.txt"), "--corpus", name]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("retrolocal: --corpus is ")
    assert errors.count("\n") == 1
