"""Loss of power at any moment of an ingest: all old or new, and nothing that was saved is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retrolocal.errors import LibraryError
from retrolocal.library import Library

Saved = list[tuple[int, int]]
"""(steps done, tokens saved) whenever the writer said that something is on disk."""


def recorded(recorder: Any, book: Any, until: int | None = None) -> Saved:
    """Reads a book into a library on `recorder`; what was acknowledged when."""
    saved: Saved = []
    library = Library(recorder.root, filesystem=recorder, now=lambda: 1_700_000_000.0)
    book.ingest(
        library, saved=lambda tokens: saved.append((len(recorder.steps), tokens)), until=until
    )
    return saved


def put_back(folder: Path, state: Any) -> None:
    """Makes the library that a crash left."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("", "tmp", "entries", "objects", "segments", "tails"):
        (folder / name).mkdir(mode=0o700)
    for path, content in state:
        (folder / path).write_bytes(content)


def faults(library: Library, books: list[Any], saved_tokens: int, sample: ModuleType) -> list[str]:
    """What is wrong with a library in which `saved_tokens` of the last book were saved.

    Of earlier books everything was.
    """
    old, new = books[:-1], books[-1]
    try:
        catalogue = library.catalogue()
    except LibraryError as error:
        return [str(error)]
    wrong = [str(problem.error) for problem in catalogue.problems]
    for manifest in catalogue.manifests:
        wrong += library.verify(manifest.key, deep=True).problems
    with library.longest_prefix(sample.IDENTITY, new.ids) as prefix:
        if prefix.tokens < saved_tokens // new.size * new.size:
            wrong.append(f"{saved_tokens} tokens were saved and {prefix.tokens} are there")
    try:
        entry = sample.find(library, new)
    except LibraryError as error:
        entry = None
        if saved_tokens == len(new.ids) or old:
            wrong.append(str(error))
    if entry is not None:
        with entry:
            possible = [book for book in books if len(book.ids) == entry.tokens]
            if saved_tokens == len(new.ids) and possible != [new]:
                wrong.append("the old entry is there and the new one was complete")
            possible[0].assert_is(entry)
    return wrong


@pytest.mark.parametrize("what", ["new document", "interrupted one", "corpus that grows"])
def test_every_crash_leaves_the_old_or_the_new(
    tmp_path: Path, sample: ModuleType, crash: ModuleType, what: str
) -> None:
    grows = what == "corpus that grows"
    last = sample.Book(segments=2, corpus="shelf" if grows else None, bytes_per_token=300)
    books = [replace(last, segments=1), last] if grows else [last]
    recorder = crash.Recorder(tmp_path / "real")
    for book in books[:-1]:
        recorded(recorder, book)
    saved = recorded(recorder, last, until=1) if what == "interrupted one" else []
    start = len(recorder.steps)
    saved += recorded(recorder, last)
    Library(recorder.root).collect()
    complete = sample.content(recorder.root)
    left = tmp_path / "left"
    library = Library(left, filesystem=sample.Hasty(left), now=lambda: 1_700_000_000.0)
    seen: set[tuple[Any, int]] = set()
    states = 0
    for moment, state in crash.crashes(recorder.steps, start=start):
        states += 1
        tokens = max((tokens for done, tokens in saved if done <= moment), default=0)
        if (state, tokens) in seen:
            continue
        seen.add((state, tokens))
        put_back(left, state)
        assert faults(library, books, tokens, sample) == [], f"crash before step {moment}"
        last.ingest(library)
        library.collect()
        assert sample.content(left) == complete, f"continued after a crash before step {moment}"
    assert states > 1_000
    assert len(seen) > 5


@pytest.mark.parametrize("missing", ["syncs", "folder_syncs"])
def test_the_simulation_finds_a_writer_that_does_not_sync(
    tmp_path: Path, sample: ModuleType, crash: ModuleType, missing: str
) -> None:
    book = sample.Book(segments=2)
    recorder = crash.Recorder(tmp_path / "real", **{missing: False})
    saved = recorded(recorder, book)
    left = tmp_path / "left"
    library = Library(left, filesystem=sample.Hasty(left))
    assert first_fault(
        recorder,
        crash,
        saved,
        lambda state, tokens: put_back(left, state) or faults(library, [book], tokens, sample),
    )


def first_fault(
    recorder: Any, crash: ModuleType, saved: Saved, look: Callable[[Any, int], list[str]]
) -> list[str]:
    seen = set()
    for moment, state in crash.crashes(recorder.steps, samples=20):
        tokens = max((tokens for done, tokens in saved if done <= moment), default=0)
        if (state, tokens) in seen:
            continue
        seen.add((state, tokens))
        found = look(state, tokens)
        if found:
            return found
    return []


def test_the_recorder_knows_what_the_disk_holds(
    tmp_path: Path, sample: ModuleType, crash: ModuleType
) -> None:
    recorder = crash.Recorder(tmp_path / "real")
    recorded(recorder, sample.Book())
    *_, (_, state) = crash.crashes(recorder.steps, start=len(recorder.steps))
    kept = {path: content for path, content in state if "/" in path}
    assert kept == sample.content(tmp_path / "real")
    assert os.path.exists(tmp_path / "real" / "FORMAT")


def test_a_crash_while_removing_leaves_no_entry_without_its_files(
    tmp_path: Path, sample: ModuleType, crash: ModuleType
) -> None:
    recorder = crash.Recorder(tmp_path / "real")
    removed, kept = sample.Book(name="a.txt"), sample.Book(name="b.txt", segments=5)
    for book in (removed, kept):
        recorded(recorder, book)
    start = len(recorder.steps)
    Library(recorder.root, filesystem=recorder).remove("a.txt")
    left = tmp_path / "left"
    library = Library(left, filesystem=sample.Hasty(left))
    seen = set()
    for _, state in crash.crashes(recorder.steps, start=start, samples=200):
        if state in seen:
            continue
        seen.add(state)
        put_back(left, state)
        for manifest in library.catalogue().manifests:
            assert library.verify(manifest.key, deep=True).problems == ()
        with library.open("b.txt") as entry:
            kept.assert_is(entry)
    assert len(seen) > 2
