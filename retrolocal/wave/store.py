"""The store: keys and values of the clustered tokens, each cluster one contiguous run.

A block store takes whole segments, permuted so that clusters are contiguous, and never changes
them. `RamStore` keeps them in the memory of the machine.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..kernels.segment import nbytes


class BlockStore(Protocol):
    def append(self, k: Tensor, v: Tensor) -> None:
        """One segment, k and v [Hkv, N, D] in cluster order, contiguous."""

    def segment(self, number: int) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, N, D] of one segment, in cluster order, as stored."""

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""

    @property
    def bytes(self) -> int: ...


class RamStore:
    """Segments as tensors, in the dtype and on the device they came in."""

    def __init__(self) -> None:
        self._segments: list[tuple[Tensor, Tensor]] = []

    def append(self, k: Tensor, v: Tensor) -> None:
        self._segments.append((k, v))

    def segment(self, number: int) -> tuple[Tensor, Tensor]:
        return self._segments[number]

    def keep(self, segments: int) -> None:
        del self._segments[segments:]

    @property
    def bytes(self) -> int:
        return sum(nbytes(*pair) for pair in self._segments)
