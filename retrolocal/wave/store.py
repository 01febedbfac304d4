"""The store: keys and values of the clustered tokens, each cluster one contiguous run.

A block store takes whole segments, permuted so that clusters are contiguous, and never changes
them. `RamStore` keeps them in the memory of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class BlockStore(Protocol):
    def append(self, k: Tensor, v: Tensor) -> None:
        """One segment, k and v [Hkv, N, D] in cluster order."""

    def segment(self, number: int) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, N, D] of one segment, in cluster order, as stored."""

    def gather(self, head: int, runs: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        """K and V [n, D] of one KV head for runs (segment, start, stop), one after another."""

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""

    @property
    def bytes(self) -> int: ...


class RamStore:
    """Segments as tensors, in the dtype and on the device they came in."""

    def __init__(self) -> None:
        self._segments: list[tuple[Tensor, Tensor]] = []

    def append(self, k: Tensor, v: Tensor) -> None:
        self._segments.append((k.contiguous(), v.contiguous()))

    def segment(self, number: int) -> tuple[Tensor, Tensor]:
        return self._segments[number]

    def gather(self, head: int, runs: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
        keys = [self._segments[segment][0][head, start:stop] for segment, start, stop in runs]
        values = [self._segments[segment][1][head, start:stop] for segment, start, stop in runs]
        return torch.cat(keys), torch.cat(values)

    def keep(self, segments: int) -> None:
        del self._segments[segments:]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self._segments for t in pair)
