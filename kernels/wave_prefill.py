"""Attention of many queries over clustered segments, the choice of clusters shared by a block.

Per KV head and block of positions: log masses of all groups under every query of the block, the
groups of highest rank (their share of the mass, summed over the queries) are descended into, the
clusters of highest rank are attended exactly, everything else is estimated. The same mathematics
as one decode step (`wave_attention`), as matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import partial_attention
from .merge import merge
from .segment import Segment, SegmentTable, ranges
from .wave_attention import log_mass


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How a chunk reads the index."""

    tokens: int
    """Positions per block."""
    descend: float
    """Share of the groups that a block descends into."""
    retrieved: float
    """Share of the clustered tokens that a block attends exactly."""
    second_order: bool = True


def wave_prefill(
    q: Tensor, lse: Tensor, segments: SegmentTable, rules: Blocks, *, scale: float
) -> tuple[Tensor, Tensor]:
    """q [Hq, T, D] over all segments; lse [Hq, T] of what is attended elsewhere (for ranking).

    Returns out [Hq, T, D] and lse [Hq, T], float32.
    """
    kv_heads = segments[0].heads
    group, (heads, tokens, dim) = q.shape[0] // kv_heads, q.shape
    out = torch.empty(heads, tokens, dim, device=q.device)
    out_lse = torch.empty(heads, tokens, device=q.device)
    for head in range(kv_heads):
        index = _Index(segments, head)
        rows = slice(head * group, (head + 1) * group)
        for start in range(0, tokens, rules.tokens):
            block = slice(start, start + rules.tokens)
            asked = q[rows, block].reshape(-1, dim)
            part, part_lse = _block(asked, lse[rows, block].reshape(-1), index, rules, scale)
            out[rows, block] = part.view(group, -1, dim)
            out_lse[rows, block] = part_lse.view(group, -1)
    return out, out_lse


class _Index:
    """What one KV head needs of all segments: the coarse level, and where the rest lies."""

    def __init__(self, segments: Sequence[Segment], head: int) -> None:
        self.segments, self.head = segments, head
        self.means = torch.stack([s.mean_key[head] for s in segments])
        self.keys = torch.cat([s.coarse.keys(head) + s.mean_key[head] for s in segments])
        self.values = torch.cat([s.coarse.values(head) for s in segments])
        self.sizes = torch.cat([s.group_sizes(head) for s in segments]).float()
        self.spreads = torch.cat([s.coarse.spreads[head] for s in segments]).float()
        counts = torch.tensor([s.groups for s in segments])
        self.group_segment = torch.arange(len(segments)).repeat_interleave(counts)
        self.first = torch.cat([s.group_offsets[head, :-1] for s in segments]).long()
        self.last = torch.cat([s.group_offsets[head, 1:] for s in segments]).long()
        self.tokens = sum(s.tokens for s in segments)


def _block(
    q: Tensor, lse: Tensor, index: _Index, rules: Blocks, scale: float
) -> tuple[Tensor, Tensor]:
    """q [R, D] of one KV head and one block: out [R, D] and lse [R], float32."""
    scaled = q.float() * scale
    norms = scaled.square().sum(dim=1, keepdim=True)

    def masses(keys: Tensor, sizes: Tensor, spreads: Tensor) -> Tensor:
        variance = norms * spreads if rules.second_order else norms.new_zeros(1)
        return log_mass(scaled @ keys.T, sizes.log(), variance)

    coarse = masses(index.keys, index.sizes, index.spreads)
    z = torch.logsumexp(torch.cat((coarse, lse[:, None]), dim=1), dim=1, keepdim=True)
    ranks = torch.exp(coarse - z).sum(0)
    count = math.ceil(rules.descend * len(ranks))
    descended = torch.topk(ranks, count).indices.sort().values
    fine = _Fine(index, descended)
    near = masses(fine.keys, fine.sizes, fine.spreads)
    coarse[:, descended] = -math.inf
    z = torch.logsumexp(torch.cat((coarse, near, lse[:, None]), dim=1), dim=1, keepdim=True)
    shares = torch.exp(near - z)
    order = torch.argsort(shares.sum(0), descending=True)
    fits = fine.sizes[order].cumsum(0) <= rules.retrieved * index.tokens
    chosen = order[fits].sort().values
    k, v = (rows[None].to(q.dtype) for rows in fine.rows(chosen))
    exact, exact_lse = partial_attention(q[None], k, v, scale=scale)
    shares[:, chosen] = 0
    coarse = torch.exp(coarse - z)
    estimate = (shares / fine.sizes) @ fine.values + (
        coarse / index.sizes.clamp(min=1)
    ) @ index.values
    mass = shares.sum(1, keepdim=True) + coarse.sum(1, keepdim=True)
    rest = estimate / mass.clamp(min=torch.finfo().tiny), (mass.log() + z)[:, 0]
    return merge((exact[0], exact_lse[0]), rest)


class _Fine:
    """The clusters of some groups, and all singles, of one KV head."""

    def __init__(self, index: _Index, groups: Tensor) -> None:
        self._index = index
        runs: list[tuple[int, Tensor]] = []
        of = index.group_segment[groups]
        for number, segment in enumerate(index.segments):
            inside = groups[of == number]
            clusters = ranges(index.first[inside], index.last[inside])
            singles = torch.arange(segment.grouped, segment.clusters)
            runs.append((number, torch.cat((clusters, singles))))
        self._runs, head = runs, index.head
        parts = [(index.segments[number], clusters) for number, clusters in runs]
        self.keys = torch.cat([_keys(s, head, c) + s.mean_key[head] for s, c in parts])
        self.values = torch.cat([_values(s, head, c) for s, c in parts])
        self.spreads = torch.cat([s.fine.spreads[head, c] for s, c in parts]).float()
        self._starts = [s.starts[head].long() for s, _ in parts]
        self.sizes = torch.cat(
            [starts[c + 1] - starts[c] for starts, (_, c) in zip(self._starts, parts, strict=True)]
        ).float()

    def rows(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [n, D] of clusters numbered as here, ascending."""
        keys, values, before = [], [], 0
        for (number, clusters), starts in zip(self._runs, self._starts, strict=True):
            inside = chosen[(chosen >= before) & (chosen < before + len(clusters))] - before
            before += len(clusters)
            picked = clusters[inside]
            tokens = ranges(starts[picked], starts[picked + 1])
            k, v = self._index.segments[number].rows(self._index.head, tokens)
            keys.append(k)
            values.append(v)
        return torch.cat(keys), torch.cat(values)


def _keys(segment: Segment, head: int, clusters: Tensor) -> Tensor:
    rows, level = segment.fine.centroids[head].index_select(0, clusters).float(), segment.fine
    return rows * level.scales[head, clusters, :1].float() if level.scales.shape[2] else rows


def _values(segment: Segment, head: int, clusters: Tensor) -> Tensor:
    rows, level = segment.fine.value_sums[head].index_select(0, clusters).float(), segment.fine
    return rows * level.scales[head, clusters, 1:].float() if level.scales.shape[2] else rows
