"""`wave_attention` on a GPU: ten launches, nothing read back, nothing allocated once it is warm.

`wave_attention_reference` says what is computed. In order: steady zone; log masses of all groups
and singles; ranks of groups; the groups descended into; log masses of their clusters; ranks of
candidates; what is retrieved and where it lies (a slot of the block cache, or pinned memory of the
host, which the kernel then reads directly); attention to it; the estimated rest; the merge.

The grids depend on capacities only and every count is read from device memory, so a step can be
captured in a CUDA graph; the graph is valid until a capacity doubles (`Scratch.generation`).
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
from torch import Tensor

from .codecs import Codec, group_dims, rotate
from .device_table import COLUMNS, Capacity, DeviceTable
from .gather import Fetch
from .parts_triton import ELEMENT_TYPES, padded_group, wide
from .segment import Segment, SegmentTable, SlotMap, nbytes
from .wave_attend_triton import estimate_kernel, exact_kernel, merge_kernel, steady_kernel
from .wave_attention import BUCKETS, NEGLIGIBLE_SUMS, Selection, StepAnswer
from .wave_score_triton import first_kernel, near_kernel, rank_groups_kernel, rank_near_kernel
from .wave_select_triton import descend_kernel, retrieve_kernel


class Parts(NamedTuple):
    """Programs per KV head in each zone; each leaves a part for the merge."""

    steady: int
    exact: int
    estimates: int

    @property
    def known(self) -> int:
        return self.steady + self.exact

    @property
    def all(self) -> int:
        return self.known + self.estimates


PARTS = Parts(16, 64, 32)
"""From four KV heads on they fill a large GPU."""
CHOICE = 1024
"""Entries that a choosing program looks at at once."""
STATE_WORDS = 16


def wave_attention_triton(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    segments: SegmentTable,
    selection: Selection,
    *,
    scale: float,
    fetch: Fetch | None = None,
) -> StepAnswer:
    """See `wave_attention.Kernel`. The answer's `bytes` is int64 [Hkv], on the device.

    Nothing waits for the device but the upload after a segment came or went. What a GPU computes
    with is read by its address: nothing is fetched.
    """
    scratch = device_scratch(q, segments, selection)
    scratch.count.fill_(steady[0].shape[1])
    return scratch.step(q, steady, scratch.count, segments, selection, scale=scale)


def device_scratch(q: Tensor, segments: SegmentTable, selection: Selection) -> Scratch:
    """This thread's scratch for steps of this shape, with room for the segments, tables shown."""
    table = _local.tables.get(segments)
    if table is None:
        table = _local.tables[segments] = DeviceTable(q.device)
    table.show(segments, selection)
    shape = (q.device, q.shape[0], segments[0].heads, q.shape[1])
    if shape not in _local.scratch:
        _local.scratch[shape] = Scratch(*shape)
    scratch = _local.scratch[shape]
    scratch.reserve(table.capacity)
    return scratch


def step_places(q: Tensor, segments: SegmentTable, selection: Selection) -> tuple[int, ...]:
    """What a captured step refers to and launches, ready for it: when it changes, capture anew."""
    scratch = device_scratch(q, segments, selection)
    rows, levels = _local.tables[segments].rows.data_ptr(), 1 + (selection.descend < 1)
    return id(scratch), scratch.generation, rows, levels


def score_candidates(
    q: Tensor, segments: SegmentTable, selection: Selection, *, scale: float
) -> None:
    """Of a step only `Scratch.score_candidates`, behind a step over as many segments."""
    scratch = device_scratch(q, segments, selection)
    scratch.score_candidates(q, _local.tables[segments], segments[0], selection, scale)


def forget() -> None:
    """Gives this thread's scratch and tables back."""
    _local.tables.clear()
    _local.scratch.clear()


class Scratch:
    """What steps of one shape write to. Arrays grow by doubling; a layer's step uses it alone."""

    def __init__(self, device: torch.device, heads: int, kv_heads: int, dim: int) -> None:
        self._device, self._shape, self._parts = device, (heads, kv_heads, dim), PARTS
        self.capacity = Capacity(0, 0, 0, 0)
        self.generation = 0
        """Grows when arrays move: graphs that were captured before are void."""
        self.count = self._new(1, dtype=torch.int32)
        """Tokens of the steady zone."""
        self._state = self._new(kv_heads, STATE_WORDS, dtype=torch.int64)
        self._hist = self._new(kv_heads, 2, 3, BUCKETS, dtype=torch.int64)
        self._part_out = self._new(heads, PARTS.all, dim)
        self._part_lse = self._new(heads, PARTS.all)
        self._out, self._lse, self._mass = self._new(heads, dim), self._new(heads), self._new(heads)
        self._tokens = self._new(kv_heads, dtype=torch.int64)
        self._read = self._new(kv_heads, dtype=torch.int64)
        self._turn = rotate(torch.eye(dim, device=device))
        self._shares = self._new(2, dtype=torch.float64)
        self._shares_of: Selection | None = None

    def reserve(self, capacity: Capacity) -> None:
        """Makes room for so many segments, groups, singles and clusters of a KV head."""
        if (
            joined := Capacity(*(max(pair) for pair in zip(capacity, self.capacity, strict=True)))
        ) == self.capacity:
            return
        self.capacity = joined
        self.generation += 1
        (heads, kv_heads, dim), int32 = self._shape, torch.int32
        segments, groups, singles, clusters = joined
        self._candidates = singles + clusters
        self._tile = 64 if dim <= 128 else 32
        self._near_tiles = clusters // self._tile
        self._tiles = self._near_tiles + groups // self._tile
        self._mean_scores = self._new(heads, segments)
        self._group_mass = self._new(heads, groups)
        self._group_info = self._new(kv_heads, 4, groups, dtype=int32)
        self._group_rank = self._new(kv_heads, groups)
        self._group_taken = self._new(kv_heads, groups, dtype=torch.int8)
        self._chosen = self._new(kv_heads, 3, groups, dtype=int32)
        self._near_score = self._new(heads, self._candidates)
        self._near_mass = self._new(heads, self._candidates)
        self._near_info = self._new(kv_heads, 3, self._candidates, dtype=int32)
        self._near_rank = self._new(kv_heads, self._candidates)
        self._near_zone = self._new(kv_heads, self._candidates, dtype=torch.int8)
        self._first_lse = self._new(heads, 3, segments)
        self._variances = self._new(kv_heads, segments)
        self._tile_lse = self._new(heads, self._tiles + self._near_tiles)
        self._taken = self._new(kv_heads, 3, self._candidates, dtype=int32)
        self._addresses = self._new(kv_heads, self._candidates, dtype=torch.int64)

    def step(
        self,
        q: Tensor,
        steady: tuple[Tensor, Tensor],
        count: Tensor,
        segments: SegmentTable,
        selection: Selection,
        *,
        scale: float,
        negligible: float = NEGLIGIBLE_SUMS,
    ) -> StepAnswer:
        """One step of q [Hq, D]; `steady` are K and V [Hkv, n, D] of which count[0] are held."""
        if self._shares_of != selection:
            shares = (min(selection.clusters, 1.0), selection.estimated)
            self._shares.copy_(torch.tensor(shares, dtype=torch.float64))
            self._shares_of = selection
        assert q.is_contiguous()
        table, first = _local.tables[segments], segments[0]
        near = steady if steady[0].shape[2] == steady[0].stride(1) else _rows(steady)
        self._attend_steady(q, near, count, scale)
        self._score(q, table, first, selection, scale)
        self._choose(table, first, selection, segments.slots)
        self._attend(q, table, first, selection, scale, negligible)
        return StepAnswer(
            out=self._out,
            lse=self._lse - self._mass.log(),
            lse_exact=self._lse,
            mass_exact=self._mass,
            retrieved_tokens=self._tokens,
            bytes=self._read,
        )

    def _attend_steady(
        self, q: Tensor, steady: tuple[Tensor, Tensor], count: Tensor, scale: float
    ) -> None:
        k, v = steady
        assert k.stride() == v.stride()
        kv_heads, sizes, parts = self._shape[1], self._sizes(), self._parts
        steady_kernel[(parts.steady, kv_heads)](
            q, k, v, count, self._part_out, self._part_lse, scale, k.stride(0),
            PARTS=parts.all, STEADY=parts.steady, **sizes, WIDE=wide(q.dtype, k.dtype),
            BLOCK=self._tile,
        )  # fmt: skip

    def _score(
        self, q: Tensor, table: DeviceTable, first: Segment, selection: Selection, scale: float
    ) -> None:
        """Everything up to the ranks of all candidates."""
        segments, groups, singles, _ = self.capacity
        heads, two_level, sizes = self._shape[1], selection.descend < 1, self._sizes()
        row = self._rows_of(q, first, selection)
        group = {"G": sizes["G"], "GP": sizes["GP"]}
        doubted = two_level and max(selection.sure, selection.calm) > 0
        near_tiles, tiles = self._near_tiles, self._tiles if two_level else self._near_tiles
        first_kernel[(segments, heads)](
            q, table.rows, table.limits, self._mean_scores, self._group_mass, self._group_info,
            self._near_score, self._near_mass, self._near_info, self._first_lse, self._variances,
            self._hist, self._state, scale, groups, self._candidates, segments,
            **sizes, **row, TWO_LEVEL=two_level,
        )  # fmt: skip
        if two_level:
            rank_groups_kernel[(triton.cdiv(groups, 64), heads)](
                table.limits, self._group_mass, self._group_info, self._group_rank,
                self._first_lse, self._part_lse, self._hist, groups, segments,
                PARTS=self._parts.all, STEADY=self._parts.steady, **group, BLOCK=64,
            )  # fmt: skip
        descend_kernel[(heads,)](
            table.limits, self._group_rank, self._group_info, self._group_taken, self._chosen,
            self._variances, self._hist, self._state, float(selection.sure),
            float(selection.frozen), float(selection.calm), float(selection.flat), groups,
            segments, G=sizes["G"], TWO_LEVEL=two_level, SURE=doubted,
            FLAT=two_level and selection.flat > 0,
            WHOLE=selection.whole and two_level, BLOCK=CHOICE,
        )  # fmt: skip
        self.score_candidates(q, table, first, selection, scale)
        rank_near_kernel[(triton.cdiv(self._candidates, 64), heads)](
            table.limits, self._near_score, self._near_mass, self._near_info, self._near_rank,
            self._first_lse, self._tile_lse, self._part_lse, self._hist, self._state,
            self._candidates, singles, segments, near_tiles, tiles,
            PARTS=self._parts.all, STEADY=self._parts.steady, **group, TWO_LEVEL=two_level,
            SECOND=selection.second_order, TILE=self._tile, BLOCK=64,
        )  # fmt: skip

    def score_candidates(
        self, q: Tensor, table: DeviceTable, first: Segment, selection: Selection, scale: float
    ) -> None:
        """Log masses of the clusters of descended groups (of one level: of all clusters)."""
        segments, groups, singles, _ = self.capacity
        near_tiles = self._near_tiles
        tiles = self._tiles if selection.descend < 1 else near_tiles
        near_kernel[(tiles, self._shape[1])](
            q, table.rows, table.limits, self._mean_scores, self._group_mass, self._group_taken,
            self._chosen, self._near_score, self._near_mass, self._near_info, self._tile_lse,
            self._state, scale, groups, self._candidates, singles, segments, near_tiles, tiles,
            **self._sizes(), **self._rows_of(q, first, selection),
        )  # fmt: skip

    def _rows_of(self, q: Tensor, first: Segment, selection: Selection) -> dict[str, object]:
        """How the scoring kernels read rows of the index."""
        index = first.fine.centroids.dtype
        return {
            "ELEMENT": ELEMENT_TYPES[index],
            "SCALED": index == torch.int8,
            "SECOND": selection.second_order,
            "WIDE": wide(q.dtype, index),
            "BLOCK": self._tile,
            "COLUMNS": COLUMNS,
        }

    def _choose(
        self, table: DeviceTable, first: Segment, selection: Selection, slots: SlotMap | None
    ) -> None:
        """What is retrieved, and where it lies."""
        places, asked, counts = (
            (self._addresses, self._taken, self._state)
            if slots is None
            else (slots.places, slots.asked, slots.counts)
        )
        retrieve_kernel[(self._shape[1],)](
            table.rows, table.limits, self._near_rank, self._near_info, self._near_zone,
            self._taken, self._addresses, places, asked, counts, self._hist, self._state,
            self._shares, float(selection.epsilon), selection.floor, self._candidates,
            self.capacity.singles, asked.shape[1],
            COLUMNS=COLUMNS, G=self._shape[0] // self._shape[1],
            TOKEN_BYTES=first.codec.token_bytes(self._shape[2]),
            COUNTED=selection.clusters <= 1, PARTLY=selection.estimated < 1,
            SLOTS=slots is not None, BLOCK=CHOICE,
        )  # fmt: skip

    def _attend(
        self,
        q: Tensor,
        table: DeviceTable,
        first: Segment,
        selection: Selection,
        scale: float,
        negligible: float,
    ) -> None:
        """Retrieved clusters, the estimated rest, and the merge."""
        (_, kv_heads, dim), sizes, codec = self._shape, self._sizes(), first.codec
        index, two_level, parts = first.fine.centroids.dtype, selection.descend < 1, self._parts
        turned = torch.mm(q.float(), self._turn).to(q.dtype) if codec.turned else q
        exact = sizes | {"DP": max(32, sizes["DP"])} if codec.turned else sizes
        exact_kernel[(parts.exact, kv_heads)](
            q, turned, self._taken, self._addresses, self._near_score, self._state,
            self._part_out, self._part_lse, scale, self._candidates,
            PARTS=parts.all, FIRST=parts.steady, EXACT=parts.exact, **exact, CODED=_bits(codec),
            ELEMENT=ELEMENT_TYPES[codec.element], ALIGN=_alignment(codec, dim),
            GROUP=group_dims(dim), WIDE=wide(q.dtype, codec.element), BLOCK=self._tile,
        )  # fmt: skip
        widened = wide(q.dtype, index)
        estimate_kernel[(parts.estimates, kv_heads)](
            table.rows, table.limits, self._group_mass, self._group_info, self._group_taken,
            self._near_mass, self._near_info, self._near_zone, self._state, self._part_out,
            self._part_lse, negligible, self.capacity.groups, self._candidates,
            self.capacity.singles, COLUMNS=COLUMNS, PARTS=parts.all, KNOWN=parts.known,
            ESTIMATES=parts.estimates, **sizes, ELEMENT=ELEMENT_TYPES[index],
            SCALED=index == torch.int8, HALF=ELEMENT_TYPES[torch.float32 if widened else q.dtype],
            TWO_LEVEL=two_level, WIDE=widened, BLOCK=self._tile,
        )  # fmt: skip
        level = first.fine
        merge_kernel[(sizes["G"], kv_heads)](
            self._part_out, self._part_lse, table.limits, self._state, self._out, self._lse,
            self._mass, self._tokens, self._read, PARTS=parts.all, KNOWN=parts.known,
            G=sizes["G"], D=dim, DP=sizes["DP"], TWO_LEVEL=two_level,
            TOKEN_BYTES=codec.token_bytes(dim),
            ROW_BYTES=nbytes(*(t[0, 0] for t in (level.centroids, level.scales, level.spreads)))
            + 4, SUM_BYTES=nbytes(level.value_sums[0, 0]), BLOCK=32,
        )  # fmt: skip

    def _sizes(self) -> dict[str, int]:
        heads, kv_heads, dim = self._shape
        padded = max(16, triton.next_power_of_2(dim))
        group = heads // kv_heads
        return {"G": group, "D": dim, "GP": padded_group(group), "DP": padded}

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)


class _Local(threading.local):
    def __init__(self) -> None:
        self.tables: WeakKeyDictionary[SegmentTable, DeviceTable] = WeakKeyDictionary()
        self.scratch: dict[tuple[torch.device, int, int, int], Scratch] = {}


_local = _Local()


def _bits(codec: Codec) -> int:
    """Of an element of coded rows, 0 for plain ones."""
    return 0 if codec.plain else 4 if codec.turned else 8


def _alignment(codec: Codec, dim: int) -> int:
    """The largest power of two, up to 16, that divides the addresses of clusters and rows."""
    both = codec.token_bytes(dim) | codec.row_bytes(dim) | 16
    return both & -both


def _rows(steady: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return steady[0].contiguous(), steady[1].contiguous()
