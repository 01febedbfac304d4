"""`wave_prefill` on a GPU: a chunk's queries through the index, a block of positions at a time.

Scores are never kept: a block's log masses are computed where they are wanted, once for the
queries' normalisers, once for the ranks, once to attend, which costs products and saves arrays of
every query by every cluster. What is chosen stays on the device: lists have a fixed room, and how
much of it counts is read by the kernels. Blocks are read by address, where they lie; rows in int8
are decoded as they are loaded.

A level's clusters (or groups) of all segments are numbered through as entries, see `Entries`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts_triton import (
    ELEMENT_TYPES,
    aligned,
    dot,
    find_run,
    finite,
    grow_lse,
    load_rows,
    load_scales,
    log_mass,
    lse_of,
    wide,
)
from .segment import SegmentTable
from .wave_prefill import Blocks

ROWS, TILE = 64, 32
EMPTY = tl.constexpr(float("-inf"))


def wave_prefill_triton(
    q: Tensor, lse: Tensor, segments: SegmentTable, rules: Blocks, *, scale: float
) -> tuple[Tensor, Tensor]:
    """See `wave_prefill.wave_prefill`; plain and int8 stores."""
    run = _Run(q.contiguous(), lse.contiguous().float(), segments, rules, scale)
    groups = torch.arange(run.coarse.count, device=q.device, dtype=torch.int32)
    every = groups.expand(run.kv_heads, run.blocks, -1).contiguous()
    ranks = run.ranks(run.coarse, every, None, run.normalisers(run.coarse, every, None, run.lse))
    descended = torch.zeros_like(ranks, dtype=torch.bool)
    count = math.ceil(rules.descend * run.coarse.count)
    descended.scatter_(2, torch.topk(ranks, count, dim=2).indices, True)
    order = torch.sort(descended.int(), dim=2, stable=True).indices.int()
    apart = order[..., : run.coarse.count - count].contiguous()
    near, held = run.candidates(order[..., run.coarse.count - count :].long())
    z = run.normalisers(run.fine, near, held, run.lse)
    z = run.normalisers(run.coarse, apart, None, z)
    ranks = run.ranks(run.fine, near, held, z)
    ordered = torch.argsort(ranks, dim=2, descending=True)
    near = near.gather(2, ordered)
    sizes = run.fine.sizes[:, None].expand(-1, run.blocks, -1).gather(2, near.long())
    inside = torch.arange(near.shape[2], device=q.device) < held[..., None]
    prefix = torch.where(inside, sizes, 0).cumsum(2)
    chosen = inside & (prefix <= rules.retrieved * segments.totals.tokens)
    return run.attend(near, prefix.int(), chosen.sum(2).int(), held, apart)


@dataclass(frozen=True, slots=True)
class Entries:
    """Where the rows of a level lie, of all segments: int64 addresses [Hkv, n]."""

    centroids: Tensor
    value_sums: Tensor
    scales: Tensor
    spreads: Tensor
    sizes: Tensor
    """int32 [Hkv, n]."""
    segments: Tensor
    """int32 [n]."""
    blocks: Tensor
    """Of the clusters' keys and values; of no meaning for groups."""

    @property
    def count(self) -> int:
        return self.segments.shape[0]


class _Run:
    """One call: its tensors, its shapes, and the launches."""

    def __init__(
        self, q: Tensor, lse: Tensor, segments: SegmentTable, rules: Blocks, scale: float
    ) -> None:
        (heads, self.tokens, self.dim), first = q.shape, segments[0]
        self.q, self.lse, self.scale, self.rules = q, lse, scale, rules
        self.kv_heads = first.heads
        self.group = heads // self.kv_heads
        self.blocks = -(-self.tokens // rules.tokens)
        self._element, self._codec = first.fine.centroids.dtype, first.codec
        self.coarse, self.fine = (_entries(segments, coarse=c) for c in (True, False))
        means = torch.stack([segment.mean_key for segment in segments], dim=1)
        own = q.view(self.kv_heads, -1, self.dim).float()
        self._means = torch.bmm(own, means.transpose(1, 2)).mul_(scale)
        before, runs, singles = 0, [], []
        for segment in segments:
            runs.append(segment.group_offsets.long() + before)
            alone = range(before + segment.grouped, before + segment.clusters)
            singles.append(torch.tensor(alone, dtype=torch.int32, device=q.device))
            before += segment.clusters
        self._first = torch.cat([run[:, :-1] for run in runs], dim=1)
        self._clusters = torch.cat([run.diff() for run in runs], dim=1)
        self._singles = torch.cat(singles)

    def candidates(self, descended: Tensor) -> tuple[Tensor, Tensor]:
        """descended int64 [Hkv, B, n]: entries int32 [Hkv, B, room] (all singles first), and how
        many of them there are, int32 [Hkv, B]."""
        first, counts = (
            rows[:, None].expand(-1, self.blocks, -1).gather(2, descended)
            for rows in (self._first, self._clusters)
        )
        prefix = counts.cumsum(2)
        room = min(self.fine.count, descended.shape[2] * _most(self._clusters))
        place = torch.arange(room, device=prefix.device).expand(*prefix.shape[:2], -1)
        run = torch.searchsorted(prefix, place.contiguous(), right=True)
        run = run.clamp(max=prefix.shape[2] - 1)
        inside = first.gather(2, run) + place - (prefix - counts).gather(2, run)
        alone = self._singles.expand(*prefix.shape[:2], -1)
        entries = torch.cat((alone, inside.clamp(0, self.fine.count - 1).int()), dim=2)
        return entries.contiguous(), (prefix[..., -1] + len(self._singles)).int()

    def normalisers(
        self, level: Entries, listed: Tensor, held: Tensor | None, known: Tensor
    ) -> Tensor:
        """`known` [Hq, T] grown by the mass of what is listed [Hkv, B, n]."""
        out = torch.empty_like(known)
        _normalise_kernel[(self._row_tiles, self.blocks, self.kv_heads)](
            *self._queries(level, listed, held), known, out, listed.shape[2], **self._constants()
        )
        return out

    def ranks(self, level: Entries, listed: Tensor, held: Tensor | None, z: Tensor) -> Tensor:
        """Shares of e^z summed over a block's queries, float32 [Hkv, B, n]; -1 where none is."""
        out = torch.empty(listed.shape, device=listed.device)
        grid = (triton.cdiv(listed.shape[2], TILE), self.blocks, self.kv_heads)
        if grid[0]:
            _rank_kernel[grid](
                *self._queries(level, listed, held), z, out, listed.shape[2], **self._constants()
            )
        return out

    def attend(
        self, near: Tensor, prefix: Tensor, runs: Tensor, held: Tensor, apart: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The first `runs` [Hkv, B] of `near` exactly, up to `held` by estimation, and `apart`."""
        out = torch.empty(self.q.shape, device=self.q.device)
        lse = torch.empty(self.q.shape[:2], device=self.q.device)
        codec, coarse = self._codec, self.coarse
        _attend_kernel[(self._row_tiles, self.blocks, self.kv_heads)](
            *self._queries(self.fine, near, held), prefix, runs, self.fine.blocks,
            self.fine.value_sums, apart, coarse.centroids, coarse.value_sums, coarse.scales,
            coarse.spreads, coarse.sizes, coarse.segments, coarse.count, apart.shape[2], out, lse,
            near.shape[2], **self._constants(), CODED=not codec.plain,
            STORED=ELEMENT_TYPES[codec.element],
            ALIGN=_alignment(codec.token_bytes(self.dim) | codec.row_bytes(self.dim)),
            STORE_WIDE=wide(self.q.dtype, codec.element), num_warps=8,
        )  # fmt: skip
        return out, lse

    @property
    def _row_tiles(self) -> int:
        return triton.cdiv(self.group * self.rules.tokens, ROWS)

    def _queries(
        self, level: Entries, listed: Tensor, held: Tensor | None
    ) -> tuple[Tensor | int | float, ...]:
        full = listed.shape[2]
        counts = held
        if counts is None:
            counts = torch.full(listed.shape[:2], full, dtype=torch.int32, device=listed.device)
        return (
            *(self.q, self._means, listed, counts, level.centroids, level.scales, level.spreads),
            *(level.sizes, level.segments, level.count, self.tokens, self._means.shape[2]),
            self.scale,
        )

    def _constants(self) -> dict[str, object]:
        return {
            "G": self.group,
            "D": self.dim,
            "DP": max(16, triton.next_power_of_2(self.dim)),
            "BT": self.rules.tokens,
            "ELEMENT": ELEMENT_TYPES[self._element],
            "SCALED": self._element == torch.int8,
            "SECOND": self.rules.second_order,
            "WIDE": wide(self.q.dtype, self._element),
            "ROWS": ROWS,
            "TILE": TILE,
        }


def _entries(segments: SegmentTable, *, coarse: bool) -> Entries:
    parts: list[list[Tensor]] = [[] for _ in range(7)]
    for number, segment in enumerate(segments):
        level = segment.coarse if coarse else segment.fine
        heads, count, _ = level.centroids.shape
        rows = torch.arange(heads * count, device=level.centroids.device).view(heads, count)
        starts = segment.starts.long()
        if coarse:
            starts = starts.gather(1, segment.group_offsets.long())
        stored = (level.centroids, level.value_sums, level.scales, level.spreads)
        for part, tensor in zip(parts, stored, strict=False):
            width = tensor[0, 0].nbytes if tensor.dim() == 3 else tensor.element_size()
            part.append(tensor.data_ptr() + rows * width)
        parts[4].append(starts.diff().int())
        parts[5].append(torch.full((count,), number, dtype=torch.int32, device=rows.device))
        width = segment.codec.token_bytes(segment.mean_key.shape[1])
        before = torch.arange(heads, device=rows.device)[:, None] * segment.tokens
        parts[6].append(segment.blocks.data_ptr() + (before + starts[:, :-1]) * width)
    joined = [torch.cat(part, dim=-1).contiguous() for part in parts]
    return Entries(*joined)


def _most(clusters: Tensor) -> int:
    """Clusters of the largest group; waits for the device once a chunk and layer."""
    return int(clusters.max()) if clusters.numel() else 0


def _alignment(size: int) -> int:
    return (size | 16) & -(size | 16)


@triton.jit
def _rows_of(tile, tokens, G: tl.constexpr, BT: tl.constexpr, ROWS: tl.constexpr):
    """Rows of a block's tile: number among all queries of the KV head [G * T], and which exist."""
    r = tile * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * BT + r % BT
    return (r // BT) * tokens + t, (r < G * BT) & (t < tokens)


@triton.jit
def _load_queries(q, h, rows, there, tokens, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    dims = tl.arange(0, DP)
    place = q + (h * G * tokens + rows).to(tl.int64)[:, None] * D + dims[None, :]
    return tl.load(place, mask=there[:, None] & (dims < D)[None, :], other=0)


@triton.jit
def _score(
    query, means_at, there, entry, valid, centroids, scales, spreads, sizes, segments, scale,
    D: tl.constexpr, DP: tl.constexpr, ELEMENT: tl.constexpr, SCALED: tl.constexpr,
    SECOND: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Scores and log masses [ROWS, TILE] of entries [TILE], and their sizes."""
    dims = tl.arange(0, DP)
    size: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    at = tl.load(centroids + entry, mask=valid, other=0)
    scores = (
        dot(query, tl.trans(load_rows(at, valid, dims, D, ELEMENT, aligned(D * size))), WIDE)
        * scale
    )
    if SCALED:
        at = tl.load(scales + entry, mask=valid, other=0)
        scores = scores * load_scales(at, valid)[None, :]
    s = tl.load(segments + entry, mask=valid, other=0)
    pair = there[:, None] & valid[None, :]
    scores += tl.load(means_at[:, None] + s[None, :], mask=pair, other=0)
    held = tl.load(sizes + entry, mask=valid, other=0)
    if SECOND:
        wide_q = query.to(tl.float32)
        norms = tl.sum(wide_q * wide_q, 1) * (scale * scale)
        at = tl.load(spreads + entry, mask=valid, other=0)
        variance = norms[:, None] * load_scales(at, valid)[None, :]
    else:
        variance = tl.zeros_like(scores)
    return scores, log_mass(scores, held.to(tl.float32)[None, :], variance), held


@triton.jit
def _normalise_kernel(
    q, means, listed, counts, centroids, scales, spreads, sizes, segments, entries, tokens,
    segment_count, scale, known, out, room,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, ELEMENT: tl.constexpr,
    SCALED: tl.constexpr, SECOND: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of what is known and of the masses listed; grid (row tiles, blocks, Hkv)."""
    b, h = tl.program_id(1), tl.program_id(2)
    rows, there = _rows_of(tl.program_id(0), tokens, G, BT, ROWS)
    query = _load_queries(q, h, rows, there, tokens, G, D, DP)
    number = h * G * tokens + rows
    means_at = means + number.to(tl.int64) * segment_count
    top = tl.load(known + number, mask=there, other=EMPTY)
    total = tl.where(top == EMPTY, 0.0, 1.0)
    pair = h * tl.num_programs(1) + b
    count, lanes = tl.load(counts + pair), tl.arange(0, TILE)
    for start in range(0, count, TILE):
        valid = start + lanes < count
        entry = tl.load(listed + pair * room + start + lanes, mask=valid, other=0)
        _, masses, _ = _score(
            query, means_at, there, h * entries + entry, valid, centroids, scales, spreads, sizes,
            segments - h * entries, scale, D, DP, ELEMENT, SCALED, SECOND, WIDE,
        )  # fmt: skip
        top, total = grow_lse(top, total, masses)
    tl.store(out + number, lse_of(top, total), mask=there)


@triton.jit
def _rank_kernel(
    q, means, listed, counts, centroids, scales, spreads, sizes, segments, entries, tokens,
    segment_count, scale, z, out, room,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, ELEMENT: tl.constexpr,
    SCALED: tl.constexpr, SECOND: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Shares of the mass, summed over a block's rows in order; grid (tiles, blocks, Hkv)."""
    b, h = tl.program_id(1), tl.program_id(2)
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    pair = h * tl.num_programs(1) + b
    valid = place < tl.load(counts + pair)
    entry = tl.load(listed + pair * room + place, mask=valid, other=0)
    ranks = tl.zeros([TILE], tl.float32)
    for tile in range(0, (G * BT + ROWS - 1) // ROWS):
        rows, there = _rows_of(tile, tokens, G, BT, ROWS)
        query = _load_queries(q, h, rows, there, tokens, G, D, DP)
        number = h * G * tokens + rows
        means_at = means + number.to(tl.int64) * segment_count
        _, masses, _ = _score(
            query, means_at, there, h * entries + entry, valid, centroids, scales, spreads, sizes,
            segments - h * entries, scale, D, DP, ELEMENT, SCALED, SECOND, WIDE,
        )  # fmt: skip
        known = finite(tl.load(z + number, mask=there, other=0))
        ranks += tl.sum(tl.where(there[:, None], tl.exp(masses - known[:, None]), 0), 0)
    tl.store(out + pair * room + place, tl.where(valid, ranks, -1), mask=place < room)


@triton.jit
def _attend_kernel(
    q, means, listed, counts, centroids, scales, spreads, sizes, segments, entries, tokens,
    segment_count, scale, prefix, runs, blocks, sums, apart, coarse_centroids, coarse_sums,
    coarse_scales, coarse_spreads, coarse_sizes, coarse_segments, coarse_entries, apart_count, out,
    lse, room,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr, ELEMENT: tl.constexpr,
    SCALED: tl.constexpr, SECOND: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, CODED: tl.constexpr, STORED: tl.constexpr, ALIGN: tl.constexpr,
    STORE_WIDE: tl.constexpr,
):  # fmt: skip
    """Chosen clusters exactly, what is left by its masses and value sums; grid as `normalise`."""
    b, h = tl.program_id(1), tl.program_id(2)
    rows, there = _rows_of(tl.program_id(0), tokens, G, BT, ROWS)
    query = _load_queries(q, h, rows, there, tokens, G, D, DP)
    number = h * G * tokens + rows
    means_at = means + number.to(tl.int64) * segment_count
    pair = h * tl.num_programs(1) + b
    count, lanes, dims = tl.load(counts + pair), tl.arange(0, TILE), tl.arange(0, DP)
    exact = tl.load(runs + pair)
    length = tl.load(prefix + pair * room + exact - 1, mask=exact > 0, other=0)
    top, total = tl.full([ROWS], EMPTY, tl.float32), tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DP], tl.float32)
    row_bytes: tl.constexpr = D * (STORED.primitive_bitwidth // 8)
    for start in range(0, length, TILE):
        t = start + lanes
        valid = t < length
        run = find_run(prefix + pair * room, exact, tl.minimum(t, length - 1))
        entry = h * entries + tl.load(listed + pair * room + run, mask=valid, other=0)
        held = tl.load(sizes + entry, mask=valid, other=0)
        inside = t - (tl.load(prefix + pair * room + run, mask=valid, other=0) - held)
        base = tl.load(blocks + entry, mask=valid, other=0)
        keys_at = base + inside * row_bytes
        keys = load_rows(keys_at, valid, dims, D, STORED, ALIGN)
        values = load_rows(keys_at + held * row_bytes, valid, dims, D, STORED, ALIGN)
        scores = dot(query, tl.trans(keys), STORE_WIDE) * scale
        if CODED:
            scales_at = base + 2 * held * row_bytes + inside * 4
            centre, _, _ = _score(
                query, means_at, there, entry, valid, centroids, scales, spreads, sizes,
                segments - h * entries, scale, D, DP, ELEMENT, SCALED, False, WIDE,
            )  # fmt: skip
            scores = scores * load_scales(scales_at, valid)[None, :] + centre
        scores = tl.where(valid[None, :], scores, EMPTY)
        new = tl.maximum(top, tl.max(scores, 1))
        weights, shrink = tl.exp(scores - finite(new)[:, None]), tl.exp(top - finite(new))
        top, total = new, total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        if CODED:
            weights = weights * load_scales(scales_at + 2, valid)[None, :]
            acc += dot(weights.to(query.dtype), values, STORE_WIDE)
        else:
            acc += dot(weights.to(values.dtype), values, STORE_WIDE)
    for start in range(exact, count, TILE):
        valid = start + lanes < count
        entry = h * entries + tl.load(listed + pair * room + start + lanes, mask=valid, other=0)
        _, masses, held = _score(
            query, means_at, there, entry, valid, centroids, scales, spreads, sizes,
            segments - h * entries, scale, D, DP, ELEMENT, SCALED, SECOND, WIDE,
        )  # fmt: skip
        top, total, acc = _estimate(
            top, total, acc, masses, held, query, sums, scales, entry, valid, dims, D, ELEMENT,
            SCALED, WIDE,
        )  # fmt: skip
    for start in range(0, apart_count, TILE):
        valid = start + lanes < apart_count
        place = apart + pair * apart_count + start + lanes
        entry = h * coarse_entries + tl.load(place, mask=valid, other=0)
        _, masses, held = _score(
            query, means_at, there, entry, valid, coarse_centroids, coarse_scales, coarse_spreads,
            coarse_sizes, coarse_segments - h * coarse_entries, scale, D, DP, ELEMENT, SCALED,
            SECOND, WIDE,
        )  # fmt: skip
        top, total, acc = _estimate(
            top, total, acc, masses, held, query, coarse_sums, coarse_scales, entry, valid, dims,
            D, ELEMENT, SCALED, WIDE,
        )  # fmt: skip
    at = out + number.to(tl.int64)[:, None] * D + dims[None, :]
    shares = acc / tl.maximum(total, 1e-37)[:, None]
    tl.store(at, shares, mask=there[:, None] & (dims < D)[None, :])
    tl.store(lse + number, lse_of(top, total), mask=there)


@triton.jit
def _estimate(
    top, total, acc, masses, held, query, sums, scales, entry, valid, dims,
    D: tl.constexpr, ELEMENT: tl.constexpr, SCALED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    size: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    new = tl.maximum(top, tl.max(masses, 1))
    weights, shrink = tl.exp(masses - finite(new)[:, None]), tl.exp(top - finite(new))
    total = total * shrink + tl.sum(weights, 1)
    weights = weights / tl.maximum(held, 1).to(tl.float32)[None, :]
    if SCALED:
        at = tl.load(scales + entry, mask=valid, other=0)
        weights = weights * load_scales(at + 2, valid)[None, :]
    at = tl.load(sums + entry, mask=valid, other=0)
    values = load_rows(at, valid, dims, D, ELEMENT, aligned(D * size))
    acc = acc * shrink[:, None] + dot(weights.to(query.dtype), values, WIDE)
    return new, total, acc
