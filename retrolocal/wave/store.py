"""The store: keys and values of the clustered tokens, each cluster one contiguous run of bytes.

A block store takes whole segments (`kernels.segment`), never changes them, and decides where their
blocks lie: `RamStore` keeps them where they came, `TieredStore` (`tiers`) also in a file,
`PinnedStore` in memory that a GPU reads over the bus.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.gather import Fetch
from ..kernels.segment import Segment, nbytes
from .buffer.source import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFigures:
    """What a store did since its last reset."""

    file_bytes: int = 0
    """Of the blocks, those that compute has to fetch from a file (now, not since the reset)."""
    cache_bytes: int = 0
    """Of the block cache (now)."""
    hits: int = 0
    """Clusters that a fetch found in the block cache."""
    fetched: int = 0
    """Clusters that were asked for and are not read in place."""
    read_bytes: int = 0
    """Read from the file, by fetches and ahead of them."""


class BlockStore(Protocol):
    """Segments are numbered from 0 in the order in which they were appended."""

    def append(self, segment: Segment, stored: Stored | None = None) -> Segment:
        """Takes a segment; returns it with its blocks as compute finds them from now on.

        `stored` says in which file the very same blocks lie already. Raises StoreError.
        """
        ...

    def moved(self, number: int, stored: Stored) -> None:
        """A segment's blocks lie in this file now too, which will stay: no other copy of them is
        needed on a disk."""

    @property
    def fetch(self) -> Fetch | None:
        """Brings clusters of segments whose blocks are elsewhere; None: there are none."""

    def whole(self, number: int) -> Segment:
        """A segment with all its blocks in memory, valid until the next call for any segment.

        Raises StoreError.
        """
        ...

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""

    @property
    def bytes(self) -> int:
        """Of all blocks, wherever they lie."""
        ...

    def figures(self) -> StoreFigures: ...
    def reset_figures(self) -> None: ...


class RamStore:
    """Segments as they came, on the device they came from."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []

    def append(self, segment: Segment, stored: Stored | None = None) -> Segment:
        """See `BlockStore.append`; what has to be checked is checked now, DamagedError."""
        if stored is not None and stored.check is not None:
            stored.check(0, nbytes(segment.blocks))
        self._segments.append(segment)
        return segment

    def moved(self, number: int, stored: Stored) -> None:
        """What is in memory stays there."""

    @property
    def fetch(self) -> None:
        return None

    def whole(self, number: int) -> Segment:
        """See `BlockStore.whole`."""
        return self._segments[number]

    def keep(self, segments: int) -> None:
        """See `BlockStore.keep`."""
        del self._segments[segments:]

    @property
    def bytes(self) -> int:
        return sum(nbytes(segment.blocks) for segment in self._segments)

    def figures(self) -> StoreFigures:
        return StoreFigures()

    def reset_figures(self) -> None:
        """Nothing is counted here."""


ARENA_BYTES = 64 << 20
"""Pinned memory is taken in pieces of this size: the system rounds small ones up to powers of 2."""
ALIGNED = 64
"""Segments begin at multiples of this many bytes."""


class PinnedStore:
    """Segments in page-locked memory of the host, which a GPU reads by address.

    What comes from a GPU is on its way when `append` returns: kernels of the same stream find it,
    and the host does once that stream has been waited for.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        self._pinned = pinned
        self._arenas: list[Tensor] = []
        self._segments: list[Segment] = []
        self._ends: list[tuple[int, int]] = []
        """Behind each segment: how many arenas there are, and how full the last one is."""

    def append(self, segment: Segment, stored: Stored | None = None) -> Segment:
        """See `BlockStore.append`; what has to be checked is checked now, DamagedError."""
        blocks = segment.blocks
        if stored is not None and stored.check is not None:
            stored.check(0, nbytes(blocks))
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
        place.copy_(blocks, non_blocking=True)
        held = replace(segment, blocks=place)
        self._segments.append(held)
        self._ends.append((arenas, begin + size))
        return held

    def moved(self, number: int, stored: Stored) -> None:
        """What is in memory stays there."""

    @property
    def fetch(self) -> None:
        return None

    def whole(self, number: int) -> Segment:
        """See `BlockStore.whole`."""
        return self._segments[number]

    def keep(self, segments: int) -> None:
        del self._segments[segments:], self._ends[segments:]

    @property
    def bytes(self) -> int:
        return sum(nbytes(segment.blocks) for segment in self._segments)

    def figures(self) -> StoreFigures:
        return StoreFigures()

    def reset_figures(self) -> None:
        """Nothing is counted here."""
