"""Any sequence of reading, interrupting, growing, opening, removing and cleaning keeps its word."""

from __future__ import annotations

import gc
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from retrolocal.errors import LibraryError, LockedError
from retrolocal.library import Entry, Library

NAMES = some.sampled_from(["a.txt", "b.txt", "shelf"])


class History(RuleBasedStateMachine):
    """A library beside what should be in it."""

    def __init__(self, sample: ModuleType) -> None:
        super().__init__()
        self.sample = sample
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "library"
        self.library = Library(self.root, filesystem=sample.Hasty(self.root))
        self.complete: dict[str, Any] = {}
        self.saved: dict[str, tuple[Any, int]] = {}
        self.open: list[tuple[str, Any, Entry]] = []

    def book(self, name: str, segments: int, rest: int) -> Any:
        corpus = name if name == "shelf" else None
        return self.sample.Book(name=name, segments=segments, rest=rest, corpus=corpus)

    @rule(name=NAMES, segments=some.integers(0, 4), rest=some.integers(0, 9))
    def read(self, name: str, segments: int, rest: int) -> None:
        book = self.book(name, segments, rest)
        book.ingest(self.library)
        self.complete[name] = book
        self.saved.pop(name, None)

    @rule(name=NAMES, until=some.integers(0, 3))
    def interrupt(self, name: str, until: int) -> None:
        book = self.book(name, 4, 3)
        if book.ingest(self.library, until=until) is None:
            self.saved[name] = book, until
        else:
            self.complete[name] = book
            self.saved.pop(name, None)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        opened = [book for other, book, _ in self.open if other == name]
        try:
            self.library.remove(name)
        except LockedError:
            assert opened
            return
        except LibraryError:
            assert name not in self.complete
            assert name not in self.saved
        # An entry that was read again since it was opened is another one.
        assert all(book is not self.complete.get(name) for book in opened), "removed while open"
        self.complete.pop(name, None)
        self.saved.pop(name, None)

    @rule(name=NAMES)
    def look(self, name: str) -> None:
        if name in self.complete:
            self.open.append((name, self.complete[name], self.library.open(name)))

    @rule()
    def close(self) -> None:
        if self.open:
            self.open.pop()[2].close()

    @rule()
    def clean(self) -> None:
        if not self.root.exists():
            return
        if self.open:
            self.library.collect()
            return
        gc.collect()
        assert self.library.collect().in_use == 0
        needed = {
            f"{folder}/{name}"
            for manifest in self.library.catalogue().manifests
            for folder, name in (
                *(("segments", f"{file.key}.safetensors") for file in manifest.segments),
                *(("tails", f"{f.key}.safetensors") for f in [manifest.tail] if f is not None),
                *(("objects", blob.name) for blob in manifest.blobs),
            )
        }
        there = set(self.sample.content(self.root))
        assert {path for path in there if not path.startswith("entries/")} == needed

    @invariant()
    def nothing_is_lost(self) -> None:
        catalogue = self.library.catalogue()
        assert catalogue.problems == ()
        states = {(manifest.name, manifest.state) for manifest in catalogue.current}
        assert states >= {(name, "complete") for name in self.complete}
        assert {name for name, _ in states} == self.complete.keys() | self.saved.keys()
        for name, book in self.complete.items():
            with self.library.open(name) as entry:
                book.assert_is(entry)
        for book, number in self.saved.values():
            with self.library.longest_prefix(self.sample.IDENTITY, book.ids) as prefix:
                assert prefix.tokens >= number * book.size
                assert prefix.damage == ()
        for _, book, entry in self.open:
            book.assert_is(entry)

    def teardown(self) -> None:
        for _, _, entry in self.open:
            entry.close()
        shutil.rmtree(self.folder)


def test_any_history(sample: ModuleType) -> None:
    run_state_machine_as_test(
        lambda: History(sample),
        settings=settings(
            max_examples=12,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
