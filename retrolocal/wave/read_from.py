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
QUERIES = 8
"""Queries of a KV head that are compared with all clusters at once."""


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


def clustered_shares(asked: Sequence[Asked], sinks: int) -> Tensor:
    """Mean share of every token in the order of the text, float32 [tokens].

    The first `sinks` of the steady zone lie before what is clustered, the others behind it.
    Clustered tokens that were not looked at have 0.
    """
    kv_heads = len(asked[0].steady)
    steady, clustered = (
        torch.zeros(count, device=asked[0].steady.device)
        for count in (
            sum(part.steady.shape[1] for part in asked),
            sum(part.segments.totals.tokens for part in asked),
        )
    )
    for head in range(kv_heads):
        first, found = 0, _head_shares(asked, head)
        for part, of in zip(asked, found, strict=True):
            clustered.index_add_(0, first + _places(part, head, of.tokens), of.shares)
            first += part.segments.totals.tokens
        steady += torch.cat([of.steady for of in found])
    return torch.cat((steady[:sinks], clustered, steady[sinks:])) / kv_heads


class _Shares(NamedTuple):
    """What the tokens of a range got of one KV head's attention, the mean over its queries."""

    steady: Tensor
    """float32 [n], of the steady zone."""
    tokens: Tensor
    """int64 [m]: clustered tokens looked at, in the order of the store."""
    shares: Tensor
    """float32 [m], theirs."""


def _head_shares(asked: Sequence[Asked], head: int) -> list[_Shares]:
    """Of each range."""
    indexes = [
        HeadIndex(part.segments, head, part.fetch) if len(part.segments) else None for part in asked
    ]
    queries = [_of_head(part, head) for part in asked]
    blocks = list(zip(*(torch.split(rows, QUERIES) for rows in queries), strict=True))
    steady = [part.steady[head].float() for part in asked]
    ranks = [queries[0].new_zeros(0 if index is None else len(index.sizes)) for index in indexes]
    for block in blocks:
        masses, near = _scored(block, indexes, steady)
        z = torch.logsumexp(torch.cat((*masses, *near), dim=1), dim=1, keepdim=True)
        for rank, mass in zip(ranks, masses, strict=True):
            rank += mass.sub_(z).exp_().sum(0)
    chosen = [_looked_into(rank, index) for rank, index in zip(ranks, indexes, strict=True)]
    inside = [
        _inside(of, index, kept) for of, index, kept in zip(chosen, indexes, steady, strict=True)
    ]
    shares = [keys.new_zeros(len(keys)) for _, keys in inside]
    held = [keys.new_zeros(len(keys)) for keys in steady]
    for block in blocks:
        masses, near = _scored(block, indexes, steady)
        for mass, of in zip(masses, chosen, strict=True):
            mass[:, of] = -torch.inf
        scores = [q @ keys.T for q, (_, keys) in zip(block, inside, strict=True)]
        z = torch.logsumexp(torch.cat((*masses, *near, *scores), dim=1), dim=1, keepdim=True)
        for share, score in zip((*shares, *held), (*scores, *near), strict=True):
            share += torch.exp(score - z).sum(0)
    count, places = len(queries[0]), [tokens for tokens, _ in inside]
    return [
        _Shares(kept / count, of, share / count)
        for kept, of, share in zip(held, places, shares, strict=True)
    ]


def _scored(
    block: Sequence[Tensor], indexes: Sequence[HeadIndex | None], steady: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each range, log masses of all clusters and logits of the steady zone, [R, n] each."""
    masses = [_masses(q, index) for q, index in zip(block, indexes, strict=True)]
    return masses, [q @ keys.T for q, keys in zip(block, steady, strict=True)]


def _looked_into(ranks: Tensor, index: HeadIndex | None) -> Tensor:
    """Clusters with the highest ranks that have `LOOKED_AT` tokens, int64, highest first."""
    order = torch.argsort(ranks, descending=True)
    return order if index is None else order[index.sizes[order].cumsum(0) <= LOOKED_AT]


def _inside(clusters: Tensor, index: HeadIndex | None, steady: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens in the order of the store, and their keys, float32 as `steady` [n, D]."""
    if index is None:
        return clusters, steady[:0]
    return index.inside_clusters(clusters), index.rows(clusters)[0].float()


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
