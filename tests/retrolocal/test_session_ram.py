"""Sessions whose keys and values do not fit into memory: the same answers, from a file."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrolocal import kept, load, memory, shelf
from retrolocal.cli import main
from retrolocal.config import SamplingConfig, SessionConfig, WaveConfig
from retrolocal.errors import DamagedError, Interrupted, MemoryLimitError, UsageError
from retrolocal.ingest import Document
from retrolocal.library import Library, segment, tensor_file
from retrolocal.memory import Placement
from retrolocal.paths import spill_dir
from retrolocal.session import AskOptions, Reply, Session
from retrolocal.shelf import Keeping, document_of

WAVE = WaveConfig(
    segment_tokens=256,
    growth_tokens=64,
    sink_tokens=4,
    window_tokens=16,
    least=64,
    store_type="int8",
)
CONFIG = SessionConfig(cache="wave", batch_size=100, wave=WAVE)
OPTIONS = AskOptions(sampling=SamplingConfig(temperature=0.0), max_new_tokens=12)
WORDS = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def document(tmp_path: Path) -> Document:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(random.Random(1).choices(WORDS, k=700)), encoding="utf-8")
    return document_of(path)


def little(monkeypatch: pytest.MonkeyPatch, cache_bytes: int = 4000) -> None:
    """From now on memory holds no segment, and block caches of so many bytes."""
    monkeypatch.setattr(memory, "place", lambda *limits: Placement(0, cache_bytes))


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a checked piece of an entry holds nothing but keys and values."""
    for module in (tensor_file, segment):
        monkeypatch.setattr(module, "CHUNK", 4096)


def ask(session: Session, document: Document, first: int = 200) -> Reply:
    *_, reply = session.ask(document.text[first : first + 60], OPTIONS)
    assert isinstance(reply, Reply)
    return reply


def answers(document: Document, library: Library | None) -> list[Reply]:
    """Two questions, the second asked again in other words."""
    keeping = None if library is None else Keeping(library=library, required=True)
    with Session.open("builtin", CONFIG, documents=[document], keeping=keeping) as session:
        found = [ask(session, document), ask(session, document, 900)]
        session.set_messages(session.messages[:2])
        return [*found, ask(session, document, 1500)]


def told(replies: list[Reply]) -> list[object]:
    """What must not depend on where keys and values lie."""
    facts = []
    for reply in replies:
        cache = reply.cache
        facts += [reply.text, reply.sources, reply.prompt_tokens, cache.mass_exact, cache.bytes]
        facts += [cache.retrieved_tokens, cache.clusters, cache.bytes_per_step]
    return facts


def files(library: Library) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in library.path.rglob("*")
        if path.is_file() and path.parent.name in ("segments", "tails", "objects")
    }


@pytest.mark.parametrize("cache_bytes", [40_000, 1], ids=["some slots", "no slot"])
def test_answers_are_the_same_without_a_library(
    document: Document, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(document, None)
    little(monkeypatch, cache_bytes)
    found = answers(document, None)
    assert told(found) == told(expected)
    assert all(reply.cache.file_bytes == 0 for reply in expected)
    assert all(reply.cache.file_bytes > 0 for reply in found)
    assert any(reply.cache.slow_bytes > 0 for reply in found)
    assert all(0 <= (reply.cache.hit_ratio or 0) <= 1 for reply in found)
    assert list(spill_dir().iterdir()) == []


def test_answers_and_files_are_the_same_with_a_library(
    tmp_path: Path, library: Library, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read now, read on after an interruption, and read before."""
    plain = Library(tmp_path / "plain")
    expected, again = answers(document, plain), answers(document, plain)
    little(monkeypatch)
    keeping = Keeping(library=library, required=True)
    with Session.open("builtin", CONFIG, documents=[document], keeping=keeping) as session:
        for progress in session.read_documents():
            if progress.done >= 20 + 256 * 2:
                break
    assert len(library.find("book.txt").segments) == 2
    assert told(answers(document, library)) == told(expected)
    assert files(library) == files(plain)
    kept_found = answers(document, library)
    assert told(kept_found) == told(again)
    assert all(reply.cache.file_bytes > 0 for reply in kept_found)


@pytest.mark.parametrize("far", [False, True], ids=["mapped", "file"])
def test_a_library_that_is_removed_under_a_chat(
    library: Library, document: Document, far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chat goes on: it holds on to its files."""
    answers(document, library)
    if far:
        little(monkeypatch)
    keeping = Keeping(library=library)
    with Session.open("builtin", CONFIG, documents=[document], keeping=keeping) as session:
        assert session.documents_estimate().whole
        first = ask(session, document)
        shutil.rmtree(library.path)
        assert ask(session, document, 900).text
        session.set_messages([])
        assert ask(session, document).text == first.text


def blocks_of(library: Library, number: int) -> Path:
    """The file of a segment; a byte of its keys and values is changed."""
    with library.open("book.txt") as entry:
        path, start, size = entry.segments()[number].location("4.segment.0.blocks")
    content = bytearray(path.read_bytes())
    content[start + size // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("far", [False, True], ids=["mapped", "file"])
def test_a_large_entry_is_checked_when_it_is_touched(
    library: Library, document: Document, far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    expected = answers(document, library)
    monkeypatch.setattr(shelf, "CHECKED_WHOLE", 1000)
    if far:
        little(monkeypatch)
    assert [reply.text for reply in answers(document, library)] == [r.text for r in expected]
    path = blocks_of(library, 1)
    remarks: list[str] = []
    keeping = Keeping(library=library, tell=remarks.append)
    everything = replace(CONFIG, wave=replace(WAVE, budget=1.0))
    with Session.open("builtin", everything, documents=[document], keeping=keeping) as session:
        assert session.documents_estimate().whole
        assert remarks == []
        # It is read again, from where it is damaged.
        again = ask(session, document)
    [remark] = remarks
    assert f"{path.name} is damaged between byte" in remark
    assert remark.endswith(f"; {shelf.MENDING}")
    with Session.open("builtin", everything, documents=[document]) as plain:
        fresh = ask(plain, document)
    assert again.text == fresh.text
    assert again.prefill_tokens == fresh.prefill_tokens - (20 + 256)
    assert library.verify("book.txt", deep=True).problems == ()


@pytest.mark.parametrize("aside", [False, True], ids=["conversation", "files"])
def test_a_file_that_becomes_shorter_between_answers_is_read_again(
    library: Library, document: Document, tmp_path: Path, aside: bool
) -> None:
    expected = answers(document, library)[0]
    remarks: list[str] = []
    keeping = Keeping(library=library, tell=remarks.append)
    with Session.open("builtin", CONFIG, documents=[document], keeping=keeping) as session:

        def answer() -> str:
            if not aside:
                session.set_messages([])
                return ask(session, document).text
            return session.generate("Some words", [tmp_path / "book.txt"], options=OPTIONS)

        before = answer()
        with library.open("book.txt") as entry:
            part = entry.segments()[1]
            path, length = part.location("4.segment.0.blocks")[:2]
            os.truncate(path, length)
            assert part.damaged
            with pytest.raises(DamagedError, match=r"has become shorter \([\d,]+ bytes instead of"):
                part.check()
        assert answer() == before
    [remark] = remarks
    assert f"{path.name} has {length:,} bytes instead of " in remark
    assert remark.endswith(shelf.MENDING)
    assert aside or before == expected.text


def test_a_stop_while_damage_is_mended_is_heard(
    library: Library, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    answers(document, library)
    monkeypatch.setattr(shelf, "CHECKED_WHOLE", 1000)
    blocks_of(library, 1)
    # Told when the first attempt has failed.
    keeping = Keeping(library=library, tell=lambda line: session.stop())
    everything = replace(CONFIG, wave=replace(WAVE, budget=1.0))
    with Session.open("builtin", everything, documents=[document], keeping=keeping) as session:
        with pytest.raises(Interrupted):
            ask(session, document)
        assert ask(session, document).text


def test_one_question_about_a_damaged_entry_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: exit 0, the answer of an undamaged entry, and whole files again."""
    small_pieces(monkeypatch)
    monkeypatch.setattr(shelf, "CHECKED_WHOLE", 1000)
    library, book = Library(tmp_path / "library"), tmp_path / "book.txt"
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(library.path))
    book.write_text(" ".join(f"w{number}" for number in range(3000)), encoding="utf-8")
    words = ["chat", "-f", str(book), "-p", "w300 w301 w302", "-n", "4", "--temp", "0"]
    words += ["--cache", "wave", "--budget", "1", "-t", "1"]
    assert main(words) == 0
    expected, kept_files = capsys.readouterr().out, files(library)
    path = blocks_of(library, 0)
    assert main(words) == 0
    found = capsys.readouterr()
    assert found.out == expected
    assert f"{path.name} is damaged between byte" in found.err
    assert shelf.MENDING in found.err
    assert files(library) == kept_files


def test_reading_ahead_again_mends_a_large_entry(
    library: Library, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat would find the damage when it touches it; `ingest` reads every byte."""
    small_pieces(monkeypatch)
    answers(document, library)
    kept_files = files(library)
    monkeypatch.setattr(shelf, "CHECKED_WHOLE", 1000)
    path = blocks_of(library, 1)
    assert files(library) != kept_files
    remarks: list[str] = []
    keeping = Keeping(library=library, required=True, checked=True, tell=remarks.append)
    with Session.open("builtin", CONFIG, documents=[document], keeping=keeping) as session:
        assert not session.documents_estimate().whole
        *_, last = session.read_documents()
    assert last.done == last.total
    assert any(path.name in line for line in remarks)
    assert files(library) == kept_files
    assert library.verify("book.txt", deep=True).problems == ()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 40)


@pytest.mark.usefixtures("machine")
def test_ram_that_is_too_little_even_with_a_file(document: Document) -> None:
    refusal = r"builtin with [\d,]+ tokens .* in a file .* --ram is 100\.0 MiB: .*--ram"
    with pytest.raises(MemoryLimitError, match=refusal):
        Session.open("builtin", replace(CONFIG, ram=100 << 20), documents=[document])
    with load("builtin", ram="64G") as session:
        assert session.config.ram == 64 << 30
    with pytest.raises(UsageError, match="ram is 'much'"):
        load("builtin", ram="much")
    with pytest.raises(UsageError, match="leave it out on a GPU"):
        SessionConfig(ram=1, device="cuda")


@pytest.mark.usefixtures("machine")
def test_more_tokens_than_memory_and_disk(
    document: Document, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    little(monkeypatch)
    monkeypatch.setattr(memory, "disk_free", lambda folder: 1000)
    with pytest.raises(MemoryLimitError, match=r"tokens have .* more than fit into memory, and"):
        Session.open("builtin", CONFIG, documents=[document])
    keeping = Keeping(library=library)
    with Session.open("builtin", CONFIG, documents=[document], keeping=keeping) as session:
        assert session.documents_estimate().memory.stored > 0


def test_a_file_of_a_part_is_opened_once(
    library: Library, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(document, library)
    opened: list[Path] = []

    class Counted(kept.FileSource):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(kept, "FileSource", Counted)
    little(monkeypatch)
    with Session.open(
        "builtin", CONFIG, documents=[document], keeping=Keeping(library=library)
    ) as session:
        ask(session, document)
    # Nothing need be retrieved of the tail.
    assert len(opened) == len(set(opened)) >= len(library.find("book.txt").segments)


@pytest.mark.slow
def test_a_text_larger_than_its_limit_keeps_it(material: Path, tmp_path: Path) -> None:
    """Once it knows the text, a process has no more memory than --ram, and answers as without."""
    text = (material / "texts" / "kjv-bible.txt").read_text("utf-8")
    book, given = tmp_path / "book.txt", ["--cache", "wave", "--store-type", "bf16"]
    words = ["-n", "8", "--temp", "0", "--json", "-q", "--no-store"]
    words += ["-p", " ".join(text[200_000:200_080].split())]

    def run(*more: str) -> tuple[dict[str, Any], int]:
        """What was printed, and the most memory that the process had, bytes."""
        program = [sys.executable, "-P", "-m", "retrolocal", *more, "-f", str(book), *given]
        with subprocess.Popen(program, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            printed = running.stdout.read()
            _, status, used = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0
        return json.loads(printed), used.ru_maxrss * 1024

    # Compiling is not in the plan: the first of the two is there to have done it.
    for characters in (len(text) // 10, len(text) // 2):
        book.write_text(text[:characters], encoding="utf-8")
        planned, counting = run("plan", "-m", "builtin", "--json")
        plain, without = run("chat", *words)
        bound = planned["total"] - planned["store"] * 3 // 4
        found, within = run("chat", *words, "--ram", str(bound))
        figures = f"counting {counting:,}, without {without:,}, --ram {bound:,}: {within:,}"
        print(f"{figures}; {found['cache']}")  # noqa: T201
        assert "file_bytes" not in plain["cache"]
        assert found["cache"]["file_bytes"] == pytest.approx(plain["cache"]["bytes"], rel=0.05)
        assert found["text"] == plain["text"]
    assert planned["total"] == pytest.approx(without, rel=0.1)
    # A plan counts the text's tokens and computes nothing: that comes before any bound is known.
    assert within <= max(bound, 1.1 * counting)
