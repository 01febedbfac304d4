"""Which tokens some queries attended to: the share of the attention that each position got.

The queries of an answer's steps are asked once more, all at once: clusters are ranked as in a
decode step, the best are looked at token by token, and what is left counts as the estimate has it.
Under dual chunk attention each range of keys is asked by queries of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.gather import Fetch
from ..kernels.segment import SegmentTable
from ..kernels.wave_attention import log_mass
from ..kernels.wave_prefill import HeadIndex

LOOKED_AT = 8192
"""Tokens per KV head and range that are looked at one by one."""


class Asked(NamedTuple):
    """A range of keys and the queries that ask for it; ranges come in the order of the text."""

    queries: Tensor
    """[S, Hq, D]."""
    steady: Tensor
    """[Hkv, n, D]: the keys of the steady zone."""
    segments: SegmentTable
    permutations: Sequence[Tensor]
    """int32 [Hkv, N]: the places of each segment's stored tokens."""
    fetch: Fetch | None


def dense_shares(asked: Sequence[Asked]) -> Tensor:
    """Where there are no segments: mean share of every token, float32 [N]."""
    kv_heads = len(asked[0].steady)
    tokens = sum(part.steady.shape[1] for part in asked)
    shares = torch.zeros(tokens, device=asked[0].steady.device)
    for head in range(kv_heads):
        scores = [_of_head(part, head) @ part.steady[head].float().T for part in asked]
        shares += torch.softmax(torch.cat(scores, dim=1), dim=1).mean(0)
    return shares / kv_heads


def clustered_shares(asked: Sequence[Asked]) -> Tensor:
    """Mean share of every clustered token in the order of the text, float32 [tokens].

    Tokens not looked at have 0.
    """
    kv_heads = len(asked[0].steady)
    tokens_held = sum(part.segments.totals.tokens for part in asked)
    shares = torch.zeros(tokens_held, device=asked[0].steady.device)
    for head in range(kv_heads):
        first = 0
        for part, (tokens, weights) in zip(asked, _head_shares(asked, head), strict=True):
            shares.index_add_(0, first + _places(part, head, tokens), weights)
            first += part.segments.totals.tokens
    return shares / kv_heads


def _head_shares(asked: Sequence[Asked], head: int) -> list[tuple[Tensor, Tensor]]:
    """Of each range, tokens looked at (in the order of the store) and their mean shares."""
    queries = [_of_head(part, head) for part in asked]
    indexes = [
        HeadIndex(part.segments, head, part.fetch) if len(part.segments) else None for part in asked
    ]
    masses = [_masses(q, index) for q, index in zip(queries, indexes, strict=True)]
    near = [q @ part.steady[head].float().T for q, part in zip(queries, asked, strict=True)]
    z = torch.logsumexp(torch.cat((*masses, *near), dim=1), dim=1, keepdim=True)
    looked_at, scores = [], []
    for q, index, mass in zip(queries, indexes, masses, strict=True):
        if index is None:
            looked_at.append(torch.empty(0, dtype=torch.int64, device=q.device))
            scores.append(mass)
            continue
        order = torch.argsort(torch.exp(mass - z).sum(0), descending=True)
        chosen = order[index.sizes[order].cumsum(0) <= LOOKED_AT]
        looked_at.append(index.inside_clusters(chosen))
        scores.append(q @ index.rows(chosen)[0].float().T)
        mass[:, chosen] = -torch.inf
    z = torch.logsumexp(torch.cat((*masses, *near, *scores), dim=1), dim=1, keepdim=True)
    means = [torch.exp(score - z).mean(0) for score in scores]
    return list(zip(looked_at, means, strict=True))


def _masses(queries: Tensor, index: HeadIndex | None) -> Tensor:
    """Log masses [R, clusters] of queries [R, D] that have the scale in them."""
    if index is None:
        return torch.empty(len(queries), 0, device=queries.device)
    norms = queries.square().sum(dim=1, keepdim=True)
    scores = queries @ index.clusters.keys.T
    return log_mass(scores, index.sizes.log(), norms * index.clusters.spreads)


def _places(asked: Asked, head: int, tokens: Tensor) -> Tensor:
    """Tokens in the order of the store -> in that of the text, int64."""
    places, before = torch.empty_like(tokens), 0
    for segment, permutation in zip(asked.segments, asked.permutations, strict=True):
        inside = (tokens >= before) & (tokens < before + segment.tokens)
        places[inside] = before + permutation[head].long()[tokens[inside] - before]
        before += segment.tokens
    return places


def _of_head(asked: Asked, head: int) -> Tensor:
    """The queries that share a KV head, float32 [S * G, D], the scale in them."""
    steps, heads, dim = asked.queries.shape
    kv_heads = len(asked.steady)
    grouped = asked.queries.float().view(steps, kv_heads, heads // kv_heads, dim)
    return grouped[:, head].reshape(-1, dim) * float(dim**-0.5)
