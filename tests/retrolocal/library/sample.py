"""A small text with known segments, and file systems that do not keep what they were given.

No test module: `conftest.py` and the child processes of tests load it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrolocal.library import DocumentText, Entry, Identity, Library
from retrolocal.library.filesystem import DiskFileSystem

IDENTITY = Identity(
    weights={"model.safetensors": "0" * 64},
    model={"layers": 2, "kv_heads": 1},
    rope={"theta": 10000.0, "scaling": None},
    tokenizer="1" * 64,
    dtype="float32",
    clustering={"segment_tokens": 40, "cluster_tokens": 16},
    codec="int8",
    numerics=1,
    prefill={"kind": "dense"},
    prefix="<s>[user]",
)


def document(name: str, text: str) -> DocumentText:
    return DocumentText(
        name=name,
        digest=hashlib.blake2b(text.encode(), digest_size=32).hexdigest(),
        extractor="text 1",
        text=text,
        outline=[{"page": 1, "start": 0, "end": len(text)}],
    )


@dataclass(frozen=True)
class Book:
    """A text cut into segments of `size` tokens and a rest."""

    segments: int = 3
    rest: int = 7
    size: int = 40
    bytes_per_token: int = 64
    name: str = "book.txt"
    corpus: str | None = None
    documents: tuple[DocumentText, ...] = field(default=())
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[DocumentText, ...]:
        return self.documents or (document(self.name, f"{self.name}: hällo \U0001f600 " * 9),)

    @property
    def ids(self) -> list[int]:
        return [(7 * i * i + 3) % 50_000 for i in range(self.segments * self.size + self.rest)]

    def piece(self, number: int) -> list[int]:
        """Token ids of one segment; of the rest for the number after the last."""
        return self.ids[number * self.size : min((number + 1) * self.size, len(self.ids))]

    def tensors(self, number: int) -> dict[str, Tensor]:
        tokens = len(self.piece(number))
        generator = torch.Generator().manual_seed(number)
        size = (tokens, self.bytes_per_token)
        return {
            "layers.0.kv": torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
            "layers.0.centroids": torch.randn(3, 5, generator=generator).bfloat16(),
            "layers.1.empty": torch.empty(0, 4),
            "layers.1.count": torch.tensor(number),
        }

    @property
    def page_map(self) -> bytes:
        return bytes(i % 251 for i in range(16 * len(self.ids)))

    def ingest(
        self,
        library: Library,
        identity: Identity = IDENTITY,
        saved: Callable[[int], None] = lambda tokens: None,
        until: int | None = None,
    ) -> str | None:
        """Reads the text into the library from where it was left; None when stopped at `until`."""
        with (
            library.longest_prefix(identity, self.ids) as prefix,
            library.write(
                identity,
                self.texts,
                corpus=self.corpus,
                prefix=prefix,
                expected_bytes=1 << 20,
                facts={"positions": len(self.ids), **self.facts},
            ) as writer,
        ):
            for number in range(len(prefix.segments), self.segments):
                if number == until:
                    return None
                writer.append_segment(self.piece(number), self.tensors(number), {"number": number})
                saved(writer.tokens)
            tail = self.segments
            key = writer.finish(self.piece(tail), self.tensors(tail), self.page_map)
            saved(len(self.ids))
            return key

    def longer(self, segments: int) -> Book:
        return replace(self, segments=self.segments + segments)

    def assert_is(self, entry: Entry) -> None:
        """Every number, text and byte of the entry is the one that was given."""
        assert entry.tokens == len(self.ids)
        assert entry.facts == {"positions": len(self.ids), **self.facts}
        assert bytes(entry.page_map) == self.page_map
        for number, segment in enumerate((*entry.segments(), entry.tail)):
            segment.check()
            assert segment.token_ids().tolist() == self.piece(number)
            wanted = self.tensors(number)
            assert segment.names == tuple(wanted)
            for name, tensor in wanted.items():
                assert torch.equal(segment.tensor(name), tensor), name
        for number, text in enumerate(self.texts):
            assert entry.text(number) == text.text
            assert entry.outline(number) == text.outline


def find(library: Library, book: Book, identity: Identity = IDENTITY) -> Entry | None:
    if book.corpus is not None:
        return library.open(book.corpus, identity)
    return library.find_file(book.texts[0].digest, "text 1", identity)


def content(root: Path) -> dict[str, bytes]:
    """All files that matter: path -> bytes."""
    folders = ("entries", "segments", "tails", "objects")
    return {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in folders
        for path in sorted((root / folder).iterdir())
    }


class Hasty(DiskFileSystem):
    """Syncs nothing: for tests that lose no power."""

    def sync(self, file: int) -> None:
        pass


class Faulty(Hasty):
    """Fails at the n-th call, once or from then on; counts its calls.

    With the error 0 only writes are counted, and the n-th takes a part of what it is given.
    """

    def __init__(self, root: Path, fail_at: int, error: int, *, lasting: bool) -> None:
        super().__init__(root)
        self.calls = 0
        self.failures = 0
        self._fail_at, self._error, self._lasting = fail_at, error, lasting

    def _is_failing(self) -> bool:
        self.calls += 1
        failing = self.calls == self._fail_at or (self._lasting and self.calls > self._fail_at)
        self.failures += failing
        return failing

    def _fail(self) -> None:
        if self._error and self._is_failing():
            raise OSError(self._error, os.strerror(self._error))

    def create(self, path: str) -> int:
        self._fail()
        return super().create(path)

    def allocate(self, file: int, size: int) -> None:
        self._fail()
        super().allocate(file, size)

    def write(self, file: int, data: memoryview, offset: int) -> int:
        if self._is_failing():
            # A disk that becomes full takes a part before it takes nothing.
            written = super().write(file, data[: len(data) // 2], offset) if len(data) > 1 else 0
            if self._error or written == 0:
                raise OSError(self._error or errno.EIO, "the disk takes nothing more")
            return written
        return super().write(file, data, offset)

    def sync(self, file: int) -> None:
        self._fail()

    def rename(self, old: str, new: str) -> None:
        self._fail()
        super().rename(old, new)

    def unlink(self, path: str) -> None:
        self._fail()
        super().unlink(path)

    def make_folder(self, folder: str) -> None:
        self._fail()
        super().make_folder(folder)

    def sync_folder(self, folder: str) -> None:
        self._fail()

    def open(self, path: str) -> int:
        self._fail()
        return super().open(path)

    def names(self, folder: str) -> list[str]:
        self._fail()
        return super().names(folder)

    def free_bytes(self) -> int:
        self._fail()
        return super().free_bytes()


class Full(Hasty):
    """Takes neither a byte nor a file more."""

    def _full(self, *given: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    create = allocate = write = make_folder = _full


ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "short": 0}
