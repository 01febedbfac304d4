"""The store: keys and values of the clustered tokens, each cluster one contiguous run of bytes.

A block store takes the blocks of whole segments (`kernels.codecs`) and never changes them.
`RamStore` keeps them in the memory of the machine.
"""

from __future__ import annotations

from typing import Protocol

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
