"""Points of a wave cache: one to come back to, and one that is on its way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..kernels.segment import Segment
from .background import Plan
from .beside import Mark


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class WaveSnapshot:
    """A point to come back to; segments never change, so a few numbers are enough.

    What the store's codec loses of a segment cut since is kept beside it for as long as a snapshot
    from before lives, so that going back and on again gives the same bytes.
    """

    tokens: int
    clustered_end: int
    segments: int
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Coming:
    """A segment that is being clustered in another stream; its numbers are there behind `mark`."""

    held: Segment
    """As the store holds it."""
    permutation: Tensor
    stop: int
    mark: Mark
