"""One decode step over clustered segments: score two levels, retrieve, attend, estimate.

`wave_attention` chooses; `wave_attention_reference` is the algorithm in plain PyTorch on any
device; on a CPU `wave_attention_numba` is the same compiled, on a GPU `wave_attention_triton`; both
read everything in place.

Per KV head, for the queries that share it (ARCHITECTURE.md, "The wave cache"):

1. Log masses of all groups and all singles. With the steady zone they give each query's
   normaliser Z and a group's rank, its share of the mass summed over the queries.
2. The groups of highest rank are descended into: log masses of their clusters, a better Z, and
   the ranks of all candidates (those clusters and the singles): their mass per token.
3. Candidates are retrieved from the highest rank down, see `select`.
4. Retrieved clusters are attended exactly, all other candidates and all groups not descended into
   are estimated, everything is merged with the steady zone's attention by log-sum-exp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .attention import full_attention
from .compiled import compiled
from .gather import Fetch, cluster_rows
from .segment import Segment, SegmentTable

NEGLIGIBLE_SUMS = 1e-2
"""Value sums of clusters that weigh less than this over the number of clusters are not read ..."""
NEGLIGIBLE_VALUES = 1e-3
"""... nor need values of retrieved tokens that weigh less than this over their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a query reads."""

    descend: float
    """Share of the groups that are descended into; 1 makes the index one level."""
    least_groups: int = 0
    """Groups that are descended into however short the context is."""
    sure: float = 0.0
    """When the groups that are left out claim less than this share of the mass, attention is sharp
    and they are not believed, because a mean hides a lone token: ..."""
    frozen: float = 0.0
    """(where a group's logits vary by this much or more, on the mean over groups and queries: there
    its mass is ruled by its largest terms, see `log_mass`; ..."""
    calm: float = 0.0
    """... where they vary less it is this share that must not be reached) ..."""
    sharp_descend: float = 1.0
    """... this share of the groups is descended into (`descend` if that is more), ..."""
    sharp_tokens: float = 0.0
    """... and this share of the tokens retrieved (twice `least` if that is more), whatever mass
    is left to estimation."""
    flat: float = 0.0
    """Where a group's logits vary by less than this, no token counts for much and each for
    something: ..."""
    flat_descend: float = 0.0
    """... this share of the groups is descended into (`descend` if that is more), ..."""
    flat_tokens: float = 0.0
    """... and this share of the tokens retrieved (`tokens` if that is more), up to `most`."""
    tokens: float
    """Share of the clustered tokens to retrieve, at most."""
    least: int = 0
    """Tokens that may be retrieved however short the context is ..."""
    most: float = math.inf
    """... and however long."""
    clusters: float = math.inf
    """Share of the clusters to retrieve, at most."""
    floor: int = 0
    """Candidates retrieved whatever their mass."""
    epsilon: float = 0.0
    """Retrieval ends when a share of the mass below this is left to estimation."""
    whole: bool = False
    """Descend further until the groups hold `tokens`; then everything in them is retrieved."""
    second_order: bool = True
    """Ranking and estimate to second order; otherwise by the centroid alone, sizes not ranked."""
    estimated: float = 1.0
    """Share of the clusters estimated, after the retrieved ones; what is left is dropped."""


@dataclass(slots=True)
class StepAnswer:
    """One step: `Hq` query heads over `Hkv` KV heads."""

    out: Tensor
    """float32 [Hq, D]."""
    lse: Tensor
    """float32 [Hq]: log of the whole (partly estimated) mass."""
    lse_exact: Tensor
    """float32 [Hq]: log of the mass that was attended exactly, the steady zone's included."""
    mass_exact: Tensor
    """float32 [Hq]: its share of the (partly estimated) mass; the rest was estimated."""
    retrieved_tokens: Tensor
    """int64 [Hkv]."""
    bytes: int | Tensor
    """Of index and clustered keys and values, read in this step: by all heads, or int64 [Hkv]."""

    @property
    def mass_estimated(self) -> Tensor:
        """float32 [Hq]."""
        return 1 - self.mass_exact


class Kernel(Protocol):
    """Answers q [Hq, D], not yet scaled; `steady` is K and V [Hkv, n, D], attended exactly.

    `fetch` brings what is retrieved of segments whose blocks are on the meta device. n may be 0:
    the answer is then that over the segments alone.
    """

    def __call__(
        self,
        q: Tensor,
        steady: tuple[Tensor, Tensor],
        segments: SegmentTable,
        selection: Selection,
        *,
        scale: float,
        fetch: Fetch | None = None,
    ) -> StepAnswer: ...


def wave_attention(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    segments: SegmentTable,
    selection: Selection,
    *,
    scale: float,
    fetch: Fetch | None = None,
) -> StepAnswer:
    """See `Kernel`; at least one segment. The answer is valid until this thread's next step."""
    kernel: Kernel = wave_attention_reference
    if q.device.type != "cuda" or steady[0].shape[1] > 0:
        kernel = _kernel(q.device.type)
    return kernel(q, steady, segments, selection, scale=scale, fetch=fetch)


@functools.cache
def _kernel(device: str) -> Kernel:
    """Looked for once: with cold caches an import statement takes as long as scoring a segment."""
    if device == "cuda":
        from .wave_attention_triton import wave_attention_triton

        return wave_attention_triton
    if device == "cpu" and compiled():
        from .wave_attention_numba import wave_attention_numba

        return wave_attention_numba
    return wave_attention_reference


def log_mass(scores: Tensor, log_sizes: Tensor, variance: Tensor) -> Tensor:
    """log of a cluster's mass from the logit of its centroid and the variance of its logits.

    To second order, log s + score + variance / 2, while variance <= 2 log s. Beyond that a sum of
    s exponentials is ruled by its largest term and grows with the deviation only (random energy
    model). Empty clusters (log s = -inf) give -inf.
    """
    log_sizes = log_sizes.expand_as(scores)
    held = log_sizes.clamp(min=0)
    frozen = torch.sqrt(2 * variance * held) - held
    return scores + log_sizes + torch.where(variance <= 2 * held, variance / 2, frozen)


BUCKET_SHIFT = 19
"""Ranks fall into buckets by their upper 13 bits as float32: 16 buckets per power of two ..."""
LOWEST_BUCKET = (127 - 32) << 4
"""... from 2^-32 on; what is below shares the first."""
BUCKETS = (32 + 8) << 4
"""... up to 2^8: a rank is at most the number of queries that share a KV head."""


def buckets(ranks: Tensor) -> Tensor:
    """int32 bucket of each rank, 0 <= rank < 256."""
    return ((ranks.view(torch.int32) >> BUCKET_SHIFT) - LOWEST_BUCKET).clamp(min=0)


def select(
    ranks: Tensor,
    sizes: Tensor,
    *,
    mass: float,
    tokens: int,
    clusters: int,
    floor: int,
    epsilon: float,
) -> Tensor:
    """Which entries are taken, bool [n]; ranks float32 [n] >= 0, sizes int64 [n].

    Entries are taken from the highest bucket down, within a bucket in order, until the next one
    would exceed `tokens` (in sizes) or `clusters` (in number), or, once `floor` are taken, until a
    bucket ends with `mass` less what was taken, each entry's rank times its size, below `epsilon`.
    More tokens, more clusters or a smaller epsilon never take less.
    """
    bucket = buckets(ranks)
    order = torch.argsort(bucket, descending=True, stable=True)
    ordered = bucket[order]
    ends = torch.cat((ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)))
    number = torch.arange(1, len(order) + 1, device=ranks.device)
    fits = (sizes[order].cumsum(0) <= tokens) & (number <= clusters)
    left = mass - (ranks.double() * sizes)[order].cumsum(0)
    enough = ends & (number >= floor) & (left < epsilon) & (epsilon > 0)
    before = enough.int().cumsum(0) - enough.int() == 0
    if floor == 0 and mass < epsilon:
        before = torch.zeros_like(before)
    taken = torch.zeros_like(fits)
    taken[order] = fits & before
    return taken


def wave_attention_reference(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    segments: SegmentTable,
    selection: Selection,
    *,
    scale: float,
    fetch: Fetch | None = None,
) -> StepAnswer:
    """See `Kernel` and the module."""
    kv_heads = segments[0].heads
    near, lse = full_attention(q[:, None].float(), *(t.float() for t in steady), scale=scale)
    parts = []
    for head, rows in enumerate(torch.arange(q.shape[0]).chunk(kv_heads)):
        own = near[rows, 0].float(), lse[rows, 0]
        parts.append(_head(q[rows].float() * scale, own, segments, selection, head, fetch))
    return StepAnswer(
        out=torch.cat([part.out for part in parts]),
        lse=torch.cat([part.lse for part in parts]),
        lse_exact=torch.cat([part.lse_exact for part in parts]),
        mass_exact=torch.cat([part.mass_exact for part in parts]),
        retrieved_tokens=torch.cat([part.retrieved_tokens for part in parts]),
        bytes=sum(part.bytes for part in parts),
    )


def _head(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    segments: Sequence[Segment],
    selection: Selection,
    head: int,
    fetch: Fetch | None,
) -> StepAnswer:
    """One KV head; q float32 [G, D] with the scale in it; `steady` is out [G, D] and lse [G]."""
    queries, floats = q.shape[0], {"dtype": torch.float64}
    fine, coarse = (_scored(q, segments, head, selection, coarse=c) for c in (False, True))
    group = _groups(segments, head)
    held = fine.sizes > 0
    singles, two_level = (group < 0) & held, selection.descend < 1
    descend, tokens = selection.descend, selection.tokens
    variance = _variance(q, segments, head) if two_level and selection.second_order else 0.0
    if two_level and variance < selection.flat:
        descend = max(descend, selection.flat_descend)
        tokens = max(tokens, selection.flat_tokens)
    wanted = int(min(selection.most, max(math.ceil(tokens * fine.tokens), selection.least)))

    descended, epsilon = torch.ones_like(coarse.sizes, dtype=torch.bool), selection.epsilon
    if two_level:
        z = _lse(coarse.log_mass, fine.log_mass[:, singles], steady[1][:, None])
        ranks = torch.exp(coarse.log_mass - z).sum(0)
        least = selection.least_groups
        descended = _best_groups(ranks, coarse.sizes, descend, least)
        sure = selection.sure if variance >= selection.frozen else selection.calm
        if float(ranks[~descended].sum(**floats)) < sure * queries:
            epsilon = 0.0
            descended |= _best_groups(ranks, coarse.sizes, selection.sharp_descend, least)
            most = max(math.ceil(selection.sharp_tokens * fine.tokens), 2 * selection.least)
            wanted = max(wanted, most)
    forced, alone = False, int(singles.sum())
    if selection.whole and alone + int(coarse.sizes[descended].sum()) < wanted:
        order = torch.argsort(buckets(ranks), descending=True, stable=True)
        short = alone + coarse.sizes[order].cumsum(0) < wanted
        descended[order[: int(short.sum()) + 1]] = True
        forced = True
    apart = coarse.part(~descended)
    inside = held & (group >= 0) & descended[group.clamp(min=0)]
    candidates = torch.cat((inside.nonzero()[:, 0], singles.nonzero()[:, 0]))
    near = fine.part(candidates)

    z = _lse(apart.log_mass, near.log_mass, steady[1][:, None])
    shares = torch.exp(near.log_mass - z)
    ranks = shares.sum(0) / near.sizes
    if not selection.second_order:
        ranks = torch.softmax(near.log_mass - near.sizes.log(), dim=1).sum(0)
    limit = selection.clusters * int(held.sum())
    most = len(ranks) if math.isinf(limit) else max(1, round(limit))
    retrieved = select(
        ranks,
        near.sizes,
        mass=float(shares.sum(**floats) + torch.exp(apart.log_mass - z).sum(**floats)),
        tokens=fine.tokens if forced else wanted,
        clusters=most,
        floor=selection.floor,
        epsilon=epsilon * queries,
    )
    rest = ~retrieved
    if selection.estimated < 1:
        number = most + round(selection.estimated * int(held.sum()))
        rest &= select(
            ranks, near.sizes, mass=0.0, tokens=fine.tokens, clusters=number, floor=0, epsilon=0.0
        )
    rows = cluster_rows(segments, head, candidates[retrieved], fetch)
    k, v = (t.float() for t in rows)

    scores = q @ k.T
    # From here on relative to what is known: the retrieved clusters' own estimates may have been
    # far too high, and what weighs little beside them need not weigh little.
    z = _lse(steady[1][:, None], near.part(rest).log_mass, apart.log_mass, scores)
    weights = torch.exp(scores - z)
    total = torch.exp(steady[1][:, None] - z)
    out = weights @ v + total * steady[0]
    total = total + weights.sum(1, keepdim=True)
    exact, read = total, k.shape[0] * segments[0].codec.token_bytes(q.shape[1])
    read += (len(coarse.sizes) * two_level + len(near.sizes)) * _row_bytes(segments[0])
    for zone in (near.part(rest), apart):
        weights = torch.exp(zone.log_mass - z)
        seen = (weights > NEGLIGIBLE_SUMS / max(1, len(fine.sizes))).any(0)
        out = out + (weights * seen / zone.sizes.clamp(min=1)) @ zone.values
        total = total + weights.sum(1, keepdim=True)
        read += int(seen.sum()) * segments[0].fine.value_sums[0, 0].nbytes
    return StepAnswer(
        out=out / total,
        lse=(total.log() + z)[:, 0],
        lse_exact=(exact.log() + z)[:, 0],
        mass_exact=(exact / total)[:, 0],
        retrieved_tokens=torch.tensor([k.shape[0]]),
        bytes=read,
    )


def _variance(q: Tensor, segments: Sequence[Segment], head: int) -> float:
    """Of a group's logits, on the mean over groups and queries."""
    spread = torch.cat([segment.coarse.spreads[head].float() for segment in segments]).mean()
    return float(q.square().sum(1).mean() * spread)


def _best_groups(ranks: Tensor, sizes: Tensor, share: float, least: int) -> Tensor:
    """Which groups of highest rank make up a share of them, at least `least`: bool [M]."""
    return select(
        ranks,
        sizes,
        mass=0.0,
        tokens=int(sizes.sum()),
        clusters=max(math.ceil(share * len(ranks)), least),
        floor=0,
        epsilon=0.0,
    )


@dataclass(slots=True)
class _Scored:
    """Clusters (or groups) of one head, of all segments."""

    log_mass: Tensor
    """float32 [G, n]."""
    sizes: Tensor
    """int64 [n]."""
    values: Tensor
    """Value sums, float32 [n, D]."""

    @property
    def tokens(self) -> int:
        return int(self.sizes.sum())

    def part(self, which: Tensor) -> _Scored:
        return _Scored(self.log_mass[:, which], self.sizes[which], self.values[which])


def _scored(
    q: Tensor, segments: Sequence[Segment], head: int, selection: Selection, *, coarse: bool
) -> _Scored:
    masses, sizes, values = [], [], []
    norms = q.square().sum(dim=1, keepdim=True)
    for segment in segments:
        level = segment.coarse if coarse else segment.fine
        held = segment.group_sizes(head) if coarse else segment.starts[head].diff().long()
        scores = q @ level.keys(head).T + (q @ segment.mean_key[head])[:, None]
        spreads = level.spreads[head].float() if selection.second_order else scores.new_zeros(1)
        masses.append(log_mass(scores, held.float().log(), norms * spreads))
        sizes.append(held)
        values.append(level.values(head))
    return _Scored(torch.cat(masses, dim=1), torch.cat(sizes), torch.cat(values))


def _groups(segments: Sequence[Segment], head: int) -> Tensor:
    """Number of each cluster's group among those of all segments, -1 for none. int64 [C]."""
    rows, before = [], 0
    for segment in segments:
        row = torch.full((segment.clusters,), -1, device=segment.starts.device)
        offsets = segment.group_offsets[head].long()
        inside = torch.arange(segment.groups, device=row.device).repeat_interleave(offsets.diff())
        row[: len(inside)] = inside + before
        before += segment.groups
        rows.append(row)
    return torch.cat(rows)


def _row_bytes(segment: Segment) -> int:
    """Bytes of a cluster that are read to know its mass."""
    level = segment.fine
    return sum(t[0, 0].nbytes for t in (level.centroids, level.scales, level.spreads)) + 4


def _lse(*parts: Tensor) -> Tensor:
    """Log-sum-exp over all columns of [G, n] each: [G, 1]."""
    return torch.logsumexp(torch.cat(parts, dim=1), dim=1, keepdim=True)
