"""What one clustered segment looks like to the kernels: its two index levels and its blocks.

A segment's N tokens are permuted so that every cluster is one contiguous run, and its clusters so
that every group is one: tokens `starts[c] : starts[c + 1]` are cluster c, clusters
`group_offsets[m] : group_offsets[m + 1]` are group m. The last `singles` clusters hold one token
each and belong to no group; between them and the groups may stand empty clusters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from .codecs import Codec


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Means and value sums of the C clusters (or groups) of H KV heads.

    int8 rows have a scale each: row = int8 * scale; other dtypes carry no scales.
    """

    centroids: Tensor
    """int8, bfloat16 or float32 [H, C, D]: mean key less the segment's mean key."""
    value_sums: Tensor
    """The same dtype, [H, C, D]."""
    scales: Tensor
    """bfloat16 [H, C, 2] for int8 rows (centroid, value sum), else [H, C, 0]."""
    spreads: Tensor
    """bfloat16 [H, C]: mean over dimensions of the variance of the keys, 0 where all are equal."""

    @property
    def bytes(self) -> int:
        return nbytes(self.centroids, self.value_sums, self.scales, self.spreads)

    def keys(self, head: int) -> Tensor:
        """Centroids of one KV head, float32 [C, D]."""
        rows = self.centroids[head].float()
        return rows * self.scales[head, :, :1].float() if self.scales.shape[2] else rows

    def values(self, head: int) -> Tensor:
        """Value sums of one KV head, float32 [C, D]."""
        rows = self.value_sums[head].float()
        return rows * self.scales[head, :, 1:].float() if self.scales.shape[2] else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """See the module. All tensors are contiguous and on one device.

    On a GPU the blocks may be in the pinned memory of the host: kernels read them there, `rows`
    copies them.
    """

    mean_key: Tensor
    """float32 [H, D]."""
    fine: Level
    coarse: Level
    starts: Tensor
    """int32 [H, C + 1]."""
    group_offsets: Tensor
    """int32 [H, M + 1]."""
    singles: int
    codec: Codec
    blocks: Tensor
    """uint8 [H, N * W]: the keys and values of each cluster, see `codecs`.

    On the meta device where compute cannot read them: whoever holds them fetches (`gather`).
    """

    @property
    def heads(self) -> int:
        return self.mean_key.shape[0]

    @property
    def tokens(self) -> int:
        return self.blocks.shape[1] // self.codec.token_bytes(self.mean_key.shape[1])

    @property
    def clusters(self) -> int:
        """C, the empty ones included."""
        return self.starts.shape[1] - 1

    @property
    def groups(self) -> int:
        return self.group_offsets.shape[1] - 1

    @property
    def grouped(self) -> int:
        """Clusters that may belong to a group, the empty ones included."""
        return self.clusters - self.singles

    def group_sizes(self, head: int) -> Tensor:
        """Tokens of each group of one KV head, int64 [M]."""
        return self.starts[head][self.group_offsets[head].long()].diff().long()

    @property
    def fine_bytes(self) -> int:
        return self.fine.bytes + nbytes(self.starts, self.mean_key)

    @property
    def coarse_bytes(self) -> int:
        return self.coarse.bytes + nbytes(self.group_offsets)

    def index_on(self, device: torch.device) -> Segment:
        """The same with both levels on a device; the blocks stay where they are."""

        def level(of: Level) -> Level:
            return Level(**{field.name: getattr(of, field.name).to(device) for field in fields(of)})

        return replace(
            self,
            mean_key=self.mean_key.to(device),
            fine=level(self.fine),
            coarse=level(self.coarse),
            starts=self.starts.to(device),
            group_offsets=self.group_offsets.to(device),
        )

    def rows(self, head: int, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """K and V [n, D] of all or some tokens (int64 [n], in cluster order) as the store has them.

        float32, or the dtype of a plain codec.
        """
        device = self.starts.device
        if tokens is None:
            tokens = torch.arange(self.tokens, device=device)
        # A plain codec only wants to know how many dimensions there are.
        centres = self.fine.centroids[head] if self.codec.plain else self.centres(head)
        blocks = self.blocks[head].to(device, non_blocking=True)
        return self.codec.decode(blocks, self.starts[head], centres, tokens)

    def recoded(self, codec: Codec) -> Segment:
        """The same with its rows, as they are decoded, in another codec."""
        k, v = (torch.stack(rows) for rows in zip(*map(self.rows, range(self.heads)), strict=True))
        centres = torch.stack([self.centres(head) for head in range(self.heads)])
        return replace(self, codec=codec, blocks=codec.encode(k, v, self.starts, centres))

    def centres(self, head: int) -> Tensor:
        """Centroids of the clusters of one KV head with the mean key, float32 [C, D]."""
        return self.fine.keys(head) + self.mean_key[head]

    def tensors(self) -> Iterator[Tensor]:
        """Those that the compiled kernels read, in the order of their table."""
        for level in (self.fine, self.coarse):
            yield from (level.centroids, level.value_sums, level.scales, level.spreads)
        yield from (self.starts, self.group_offsets, self.mean_key, self.blocks)


ELEMENTS = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8)
"""Of the codecs, in the order in which saved segments count them."""


def segment_tensors(segment: Segment) -> dict[str, Tensor]:
    """Everything a segment is, by name, in a fixed order; `segment_of` makes it again."""
    levels = (("fine", segment.fine), ("coarse", segment.coarse))
    tensors = {"mean_key": segment.mean_key}
    for name, level in levels:
        tensors |= {f"{name}.{field.name}": getattr(level, field.name) for field in fields(Level)}
    tensors |= {"starts": segment.starts, "group_offsets": segment.group_offsets}
    facts = torch.tensor([segment.singles, ELEMENTS.index(segment.codec.element)])
    return tensors | {"facts": facts, "blocks": segment.blocks}


def segment_of(tensors: Mapping[str, Tensor]) -> Segment:
    """The segment whose `segment_tensors` these are; they are not copied."""

    def level(name: str) -> Level:
        return Level(**{field.name: tensors[f"{name}.{field.name}"] for field in fields(Level)})

    singles, element = tensors["facts"].tolist()
    return Segment(
        mean_key=tensors["mean_key"],
        fine=level("fine"),
        coarse=level("coarse"),
        starts=tensors["starts"],
        group_offsets=tensors["group_offsets"],
        singles=singles,
        codec=Codec(ELEMENTS[element]),
        blocks=tensors["blocks"],
    )


class Totals(NamedTuple):
    """Of one KV head; the empty clusters are counted."""

    clusters: int = 0
    groups: int = 0
    singles: int = 0
    tokens: int = 0
    longest: int = 0
    """Tokens of the longest segment."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotMap:
    """Where a GPU's block cache has the clusters of a layer, and what steps asked of it."""

    places: Tensor
    """int64 [keys]: address of the slot of each cluster, 0 for none. Cluster c of KV head h of a
    segment of C clusters has the key H * (clusters of all segments before) + h * C + c."""
    asked: Tensor
    """int64 [H, n]: keys that the last step retrieved, as many as there is room for; -1 - key for
    one that was found in a slot."""
    counts: Tensor
    """int64 [H, 3]: clusters looked up and found since the beginning; how many `asked` lists."""


class SegmentTable(Sequence[Segment]):
    """Segments in order, with what the compiled kernels need to find them.

    Appending copies nothing but a row of numbers: addresses stay valid because the table holds the
    segments.
    """

    COLUMNS = 18
    """12 addresses of `Segment.tensors` (0 on the meta device), then C, M, U, N, groups and singles
    of all before."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._rows = torch.zeros(16, self.COLUMNS, dtype=torch.int64)
        self._totals = [Totals()]
        self.version = 0
        """Grows whenever a segment comes or goes."""
        self.slots: SlotMap | None = None
        """Of the block cache of a GPU; without one every cluster is read from where it lies."""

    @overload
    def __getitem__(self, item: int) -> Segment: ...
    @overload
    def __getitem__(self, item: slice) -> list[Segment]: ...
    def __getitem__(self, item: int | slice) -> Segment | list[Segment]:
        return self._segments[item]

    def __len__(self) -> int:
        return len(self._segments)

    def __deepcopy__(self, memo: dict[int, Any]) -> SegmentTable:
        copied = SegmentTable()
        for segment in self._segments:
            copied.append(copy.deepcopy(segment, memo))
        return copied

    @property
    def rows(self) -> Tensor:
        """int64 [segments, COLUMNS]."""
        return self._rows[: len(self._segments)]

    @property
    def totals(self) -> Totals:
        """What one KV head has, over all segments."""
        return self._totals[-1]

    def append(self, segment: Segment) -> None:
        number, before = len(self._segments), self.totals
        self.version += 1
        if number == len(self._rows):
            self._rows = torch.cat((self._rows, torch.zeros_like(self._rows)))
        shape = (segment.clusters, segment.groups, segment.singles, segment.tokens)
        addresses = (tensor.data_ptr() for tensor in segment.tensors())
        self._rows[number] = torch.tensor([*addresses, *shape, before.groups, before.singles])
        self._segments.append(segment)
        self._totals.append(
            Totals(
                before.clusters + segment.clusters,
                before.groups + segment.groups,
                before.singles + segment.singles,
                before.tokens + segment.tokens,
                max(before.longest, segment.tokens),
            )
        )

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""
        self.version += 1
        del self._segments[segments:], self._totals[segments + 1 :]


def nbytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def ranges(first: Tensor, last: Tensor) -> Tensor:
    """first[0] ... last[0] - 1, first[1] ... last[1] - 1, ... int64."""
    lengths = last - first
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    shift = (first - ends + lengths).repeat_interleave(lengths)
    return torch.arange(total, device=first.device) + shift
