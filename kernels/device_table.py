"""What the Triton kernels need to find the segments of one layer: two small tensors on the device.

`rows` holds addresses and counts per segment, `limits` what a step may read of them all. Both keep
their place in memory as long as `capacity` stays the same, and change only when a segment comes or
goes, so that a captured graph stays valid while the context grows: capacities double.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch

from .segment import SegmentTable
from .wave_attention import Selection

COLUMNS: Final = SegmentTable.COLUMNS + 1
"""Those of `SegmentTable`, then the clusters of all segments before."""
SEGMENTS, GROUPS, SINGLES, CLUSTERS, DESCENDED, SHARP_DESCENDED, WANTED, SHARP_WANTED = range(8)
FLAT_DESCENDED, FLAT_WANTED = 8, 9
LIMITS = 10
"""Columns of `limits`."""
LEAST = (16, 64, 64, 1024)
"""Capacities that are never undercut, so that a short context does not move often."""


class Capacity(NamedTuple):
    """What fits without moving anything: powers of two, of one KV head."""

    segments: int
    groups: int
    singles: int
    clusters: int

    @classmethod
    def of(cls, segments: SegmentTable) -> Capacity:
        totals = segments.totals
        counts = (len(segments), totals.groups, totals.singles, totals.clusters)
        return cls(*(max(least, _doubled(n)) for least, n in zip(LEAST, counts, strict=True)))


def limits(segments: SegmentTable, selection: Selection) -> list[int]:
    """The columns of `limits`: counts, then groups to descend into and tokens to retrieve."""
    totals = segments.totals

    def groups(share: float) -> int:
        return max(math.ceil(share * totals.groups), selection.least_groups)

    # Groups taken because attention is sharp come on top of those taken anyway.
    sharp = max(groups(selection.descend), groups(selection.sharp_descend))
    flat = max(groups(selection.descend), groups(selection.flat_descend))
    wanted, more = (
        int(min(selection.most, max(math.ceil(share * totals.tokens), selection.least)))
        for share in (selection.tokens, max(selection.tokens, selection.flat_tokens))
    )
    most = max(math.ceil(selection.sharp_tokens * totals.tokens), 2 * selection.least)
    return [
        *(len(segments), totals.groups, totals.singles, totals.clusters),
        *(groups(selection.descend), sharp, wanted, most, flat, more),
    ]


class DeviceTable:
    """See the module. Nothing is uploaded while the segments stay the same."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shown: tuple[int, Selection] | None = None
        self.capacity = Capacity(0, 0, 0, 0)
        self.rows = torch.zeros(0, COLUMNS, dtype=torch.int64, device=device)
        self.limits = torch.zeros(LIMITS, dtype=torch.int64, device=device)

    def show(self, segments: SegmentTable, selection: Selection) -> None:
        """Makes the tensors say what the host's table does."""
        if self._shown == (segments.version, selection):
            return
        capacity = Capacity.of(segments)
        if _exceeds(capacity, self.capacity):
            self.capacity = capacity
            self.rows = torch.zeros(
                capacity.segments, COLUMNS, dtype=torch.int64, device=self._device
            )
        before = torch.tensor([s.clusters for s in segments]).cumsum(0)
        rows = torch.cat((segments.rows, before.roll(1)[:, None]), dim=1)
        rows[0, -1] = 0
        self.rows[: len(rows)].copy_(rows)
        self.limits.copy_(torch.tensor(limits(segments, selection)))
        self._shown = segments.version, selection


def _exceeds(one: Capacity, other: Capacity) -> bool:
    return any(mine > theirs for mine, theirs in zip(one, other, strict=True))


def _doubled(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
