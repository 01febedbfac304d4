"""Slow tiers that can be slow, fail and stand still, and what should be read from them."""

from __future__ import annotations

import ctypes
import random
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from retrolocal.errors import StoreError
from retrolocal.wave.buffer.prefetch import Prefetcher
from retrolocal.wave.buffer.slots import Ints
from retrolocal.wave.buffer.source import Span


class FakeSource:
    """Random bytes that are read as slowly as asked, or not at all."""

    def __init__(self, size: int, seed: int = 0, seconds: float = 0.0) -> None:
        self.content = random.Random(seed).randbytes(size)
        self.seconds = seconds
        self.failing: set[int] = set()
        """Offsets that cannot be read."""
        self.gates: dict[int, threading.Event] = {}
        """Offsets whose reading waits."""
        self.raises: type[BaseException] = StoreError
        self.reads: list[tuple[int, str]] = []
        """Offset and thread of every read that has begun."""
        self.announced: list[Span] = []
        self.reading = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        return len(self.content)

    @property
    def address(self) -> int | None:
        return None

    def announce(self, spans: Sequence[Span]) -> None:
        self.announced += spans

    def read(self, offset: int, into: memoryview) -> None:
        with self._lock:
            self.reads.append((offset, threading.current_thread().name))
            self.reading += 1
        try:
            if offset in self.gates:
                assert self.gates[offset].wait(60)
            half = len(into) // 2
            into[:half] = self.content[offset : offset + half]
            if self.seconds:
                time.sleep(self.seconds)
            if offset in self.failing:
                raise self.raises(f"byte {offset}: bad sector")
            into[half:] = self.content[offset + half : offset + len(into)]
        finally:
            with self._lock:
                self.reading -= 1


def bytes_at(address: int, length: int) -> bytes:
    return ctypes.string_at(address, length)


def layout(lengths: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Offsets and lengths [H, C] of clusters that lie one after another."""
    sizes = np.array(lengths, np.int64)
    ends = np.cumsum(sizes.ravel())
    return (ends - sizes.ravel()).reshape(sizes.shape), sizes


@pytest.fixture
def prefetcher() -> Prefetcher:
    return Prefetcher(threads=0)


def until(condition: object) -> None:
    """Waits until a function says yes."""
    assert callable(condition)
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("waited for a minute")
