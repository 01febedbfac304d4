"""Attention of many queries over clustered segments, the choice of clusters shared by a block.

Per KV head and block of positions: log masses of all groups under every query of the block, the
groups of highest rank (their share of the mass, summed over the queries) are descended into, the
clusters of highest rank are attended exactly, everything else is estimated. The same mathematics
as one decode step (`wave_attention`), as matrix products. `wave_prefill` chooses between the
reference, whose elementwise part is compiled for CPUs, and `wave_prefill_triton`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import partial_attention
from .compiled import compiled
from .gather import Fetch, cluster_rows
from .merge import merge
from .segment import Level, Segment, SegmentTable, ranges
from .wave_attention import log_mass
from .widened import widens


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
    q: Tensor,
    lse: Tensor,
    segments: SegmentTable,
    rules: Blocks,
    *,
    scale: float,
    fetch: Fetch | None = None,
) -> tuple[Tensor, Tensor]:
    """q [Hq, T, D] over all segments; lse [Hq, T] of what is attended elsewhere (for ranking).

    `fetch` as in `wave_attention.Kernel`. Returns out [Hq, T, D] and lse [Hq, T], float32.
    """
    if q.device.type == "cuda" and not segments[0].codec.turned:
        from .wave_prefill_triton import wave_prefill_triton

        return wave_prefill_triton(q, lse, segments, rules, scale=scale)
    return wave_prefill_reference(q, lse, segments, rules, scale=scale, fetch=fetch)


def wave_prefill_reference(
    q: Tensor,
    lse: Tensor,
    segments: SegmentTable,
    rules: Blocks,
    *,
    scale: float,
    fetch: Fetch | None = None,
) -> tuple[Tensor, Tensor]:
    """See `wave_prefill`; on any device."""
    kv_heads = segments[0].heads
    group, (heads, tokens, dim) = q.shape[0] // kv_heads, q.shape
    out = torch.empty(heads, tokens, dim, device=q.device)
    out_lse = torch.empty(heads, tokens, device=q.device)
    for head in range(kv_heads):
        index = HeadIndex(segments, head, fetch)
        rows = slice(head * group, (head + 1) * group)
        for start in range(0, tokens, rules.tokens):
            block = slice(start, start + rules.tokens)
            asked = q[rows, block].reshape(-1, dim)
            part, part_lse = _block(asked, lse[rows, block].reshape(-1), index, rules, scale)
            out[rows, block] = part.view(group, -1, dim)
            out_lse[rows, block] = part_lse.view(group, -1)
    return out, out_lse


class HeadIndex:
    """Both levels of one KV head over all segments, as float32; clusters are numbered through."""

    def __init__(self, segments: Sequence[Segment], head: int, fetch: Fetch | None = None) -> None:
        self._segments, self._head, self._fetch = segments, head, fetch
        coarse, fine = [s.coarse for s in segments], [s.fine for s in segments]
        means = [s.mean_key[head] for s in segments]
        self.group_sizes = torch.cat([s.group_sizes(head) for s in segments]).float()
        self.groups = _Level(coarse, means, self.group_sizes, head)
        self._ends = torch.tensor([0, *itertools.accumulate(s.tokens for s in segments)])
        starts = [s.starts[head].long() + at for s, at in zip(segments, self._ends, strict=False)]
        self._starts = torch.cat([row[:-1] for row in starts])
        self._stops = torch.cat([row[1:] for row in starts])
        self.sizes = (self._stops - self._starts).float()
        self.clusters = _Level(fine, means, self.sizes, head)
        before = [0, *torch.tensor([s.clusters for s in segments]).cumsum(0).tolist()]
        offsets = [
            s.group_offsets[head].long() + at for s, at in zip(segments, before, strict=False)
        ]
        self._first = torch.cat([row[:-1] for row in offsets])
        self._last = torch.cat([row[1:] for row in offsets])
        self._singles = torch.cat(
            [
                torch.arange(at + s.grouped, at + s.clusters, device=self._starts.device)
                for s, at in zip(segments, before, strict=False)
            ]
        )
        self.tokens = int(self._ends[-1])

    def inside(self, groups: Tensor) -> Tensor:
        """Clusters of some groups, and all singles."""
        return torch.cat((ranges(self._first[groups], self._last[groups]), self._singles))

    def inside_clusters(self, clusters: Tensor) -> Tensor:
        """Tokens of some clusters, int64, ascending: numbered through in the order of the store."""
        clusters = clusters.sort().values
        return ranges(self._starts[clusters], self._stops[clusters])

    def rows(self, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [n, D] of the tokens of some clusters, in the order of `inside_clusters`."""
        if any(segment.blocks.is_meta for segment in self._segments):
            return cluster_rows(self._segments, self._head, clusters.sort().values, self._fetch)
        tokens = self.inside_clusters(clusters)
        if tokens.device.type != "cpu":
            k, v = self._decoded
            return k[tokens], v[tokens]
        bounds = torch.searchsorted(tokens, self._ends)
        pieces = zip(self._segments, self._ends[:-1], bounds[:-1], bounds[1:], strict=True)
        rows = [s.rows(self._head, tokens[a:b] - at) for s, at, a, b in pieces]
        return torch.cat([keys for keys, _ in rows]), torch.cat([values for _, values in rows])

    @functools.cached_property
    def _decoded(self) -> tuple[Tensor, Tensor]:
        """All rows on a GPU, brought over the bus once for all blocks of a chunk."""
        k, v = zip(*(segment.rows(self._head) for segment in self._segments), strict=True)
        return torch.cat(k), torch.cat(v)


class _Level:
    """Keys [n, D] and spreads [n] as float32."""

    def __init__(
        self, levels: Sequence[Level], means: Sequence[Tensor], sizes: Tensor, head: int
    ) -> None:
        pairs = zip(levels, means, strict=True)
        self.keys = torch.cat([level.keys(head) + mean for level, mean in pairs])
        self.spreads = torch.cat([level.spreads[head] for level in levels]).float()
        self._levels, self._sizes, self._head = levels, sizes, head

    @functools.cached_property
    def values(self) -> Tensor:
        """Means [n, D] as bfloat16: what is estimated needs no more than eight bits of them."""
        sums = torch.cat([level.values(self._head) for level in self._levels])
        return (sums / self._sizes.clamp(min=1)[:, None]).bfloat16()


def _block(
    q: Tensor, lse: Tensor, index: HeadIndex, rules: Blocks, scale: float
) -> tuple[Tensor, Tensor]:
    """q [R, D] of one KV head and one block: out [R, D] and lse [R], float32."""
    scaled = q.float() * scale
    norms = scaled.square().sum(dim=1) if rules.second_order else scaled.new_zeros(len(scaled))
    coarse, z = _products(scaled, index.groups.keys, q), lse.float().clone()
    ranks = _shares(coarse, norms, index.group_sizes.log(), index.groups.spreads, z)
    count = math.ceil(rules.descend * len(ranks))
    descended = torch.topk(ranks, count).indices.sort().values
    coarse[:, descended] = 0
    far = coarse.sum(1)
    inside, level = index.inside(descended), index.clusters
    sizes, whole = index.sizes[inside], torch.logaddexp(lse.float(), z + far.log())
    near = _products(scaled, level.keys[inside], q)
    ranks = _shares(near, norms, sizes.log(), level.spreads[inside], whole)
    order = torch.argsort(ranks, descending=True)
    chosen = order[sizes[order].cumsum(0) <= rules.retrieved * index.tokens]
    k, v = (rows[None].to(q.dtype) for rows in index.rows(inside[chosen]))
    exact, exact_lse = partial_attention(q[None], k, v, scale=scale)
    near[:, chosen] = 0
    # Finite: far groups that weigh nothing beside those descended into have a mass of 0.
    rescaled = torch.exp(z - whole).clamp(max=torch.finfo().max)
    mass = near.sum(1) + rescaled * far
    estimate = _weighted(near, level.values[inside], q)
    estimate += rescaled[:, None] * _weighted(coarse, index.groups.values, q)
    rest = estimate / mass.clamp(min=torch.finfo().tiny)[:, None], mass.log() + whole
    return merge((exact[0], exact_lse[0]), rest)


def _products(queries: Tensor, keys: Tensor, q: Tensor) -> Tensor:
    """Queries [R, D] times keys [n, D] as float32, multiplied in q's dtype, as the model does."""
    if widens(q):
        return queries @ keys.T
    return (queries.to(q.dtype) @ keys.to(q.dtype).T).float()


def _weighted(shares: Tensor, values: Tensor, q: Tensor) -> Tensor:
    """Shares [R, n] times values [n, D], bfloat16."""
    return shares @ values.float() if widens(q) else shares.bfloat16() @ values


def _shares(
    scores: Tensor, norms: Tensor, log_sizes: Tensor, spreads: Tensor, lse: Tensor
) -> Tensor:
    """In place: lse [R] grows by the masses of scores [R, n], which become shares of e^lse.

    Returns the sums of the shares over rows, [n].
    """
    if scores.device.type == "cpu" and compiled():
        from .wave_prefill_numba import shares

        return shares(scores, norms, log_sizes, spreads, lse)
    scores.copy_(log_mass(scores, log_sizes, norms[:, None] * spreads))
    torch.logaddexp(lse, torch.logsumexp(scores, dim=1), out=lse)
    return scores.sub_(lse[:, None]).exp_().sum(0)
