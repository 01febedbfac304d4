"""The store: keys and values of the clustered tokens, each cluster one contiguous run of bytes.

A block store takes the blocks of whole segments (`kernels.codecs`) and never changes them.
`RamStore` keeps them in the memory of the machine, `PinnedStore` there for a GPU that reads them
over the bus.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..kernels.segment import nbytes


class BlockStore(Protocol):
    def append(self, blocks: Tensor) -> None:
        """One segment's blocks, uint8 [Hkv, N * W], contiguous."""

    def segment(self, number: int) -> Tensor:
        """The blocks of one segment where they lie now; they stay there until `keep`."""

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""

    @property
    def bytes(self) -> int: ...


class RamStore:
    """Segments as tensors, on the device they came from."""

    def __init__(self) -> None:
        self._segments: list[Tensor] = []

    def append(self, blocks: Tensor) -> None:
        self._segments.append(blocks)

    def segment(self, number: int) -> Tensor:
        return self._segments[number]

    def keep(self, segments: int) -> None:
        del self._segments[segments:]

    @property
    def bytes(self) -> int:
        return sum(nbytes(blocks) for blocks in self._segments)


ARENA_BYTES = 64 << 20
"""Pinned memory is taken in pieces of this size: the system rounds small ones up to powers of 2."""
ALIGNED = 64
"""Segments begin at multiples of this many bytes."""


class PinnedStore:
    """Segments in page-locked memory of the host, which a GPU reads by address.

    `append` returns when the bytes have arrived, so that a file or a kernel may read them.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        self._pinned = pinned
        self._arenas: list[Tensor] = []
        self._segments: list[Tensor] = []
        self._ends: list[tuple[int, int]] = []
        """Behind each segment: how many arenas there are, and how full the last one is."""

    def append(self, blocks: Tensor) -> None:
        arenas, used = self._ends[-1] if self._ends else (0, 0)
        begin, size = -(-used // ALIGNED) * ALIGNED, blocks.numel()
        if arenas == 0 or begin + size > self._arenas[arenas - 1].numel():
            if len(self._arenas) > arenas and self._arenas[arenas].numel() < size:
                del self._arenas[arenas:]
            if len(self._arenas) == arenas:
                length = max(ARENA_BYTES, 1 << (size - 1).bit_length())
                self._arenas.append(torch.empty(length, dtype=torch.uint8, pin_memory=self._pinned))
            arenas, begin = arenas + 1, 0
        place = self._arenas[arenas - 1][begin : begin + size].view(blocks.shape)
        place.copy_(blocks)
        self._segments.append(place)
        self._ends.append((arenas, begin + size))

    def segment(self, number: int) -> Tensor:
        return self._segments[number]

    def keep(self, segments: int) -> None:
        del self._segments[segments:], self._ends[segments:]

    @property
    def bytes(self) -> int:
        return sum(nbytes(blocks) for blocks in self._segments)
