"""Which tokens some queries attended to: the share of the attention that each position got.

The queries of an answer's steps are asked once more, all at once: clusters are ranked as in a
decode step, the best are looked at token by token, and what is left counts as the estimate has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.segment import SegmentTable
from ..kernels.wave_attention import log_mass
from ..kernels.wave_prefill import HeadIndex

LOOKED_AT = 8192
"""Tokens per KV head that are looked at one by one."""


def dense_shares(queries: Tensor, keys: Tensor) -> Tensor:
    """queries [S, Hq, D], keys [Hkv, N, D]: mean share of every token, float32 [N]."""
    shares = torch.zeros(keys.shape[1], device=keys.device)
    for own, rows in zip(_by_head(queries, len(keys)), keys, strict=True):
        shares += torch.softmax(own @ rows.float().T, dim=1).mean(0)
    return shares / len(keys)


def clustered_shares(
    queries: Tensor,
    steady: Tensor,
    segments: SegmentTable,
    permutations: Sequence[Tensor],
) -> Tensor:
    """Mean share of every clustered token in the order of the text, float32 [tokens].

    queries [S, Hq, D]; steady [Hkv, n, D] are the keys of the steady zone; permutations int32
    [Hkv, N] the places of each segment's stored tokens. Tokens not looked at have 0.
    """
    shares = torch.zeros(segments.totals.tokens, device=steady.device)
    for head, own in enumerate(_by_head(queries, len(steady))):
        index = HeadIndex(segments, head)
        tokens, weights = _head_shares(own, steady[head].float(), index)
        places, before = torch.empty_like(tokens), 0
        for segment, permutation in zip(segments, permutations, strict=True):
            inside = (tokens >= before) & (tokens < before + segment.tokens)
            places[inside] = before + permutation[head].long()[tokens[inside] - before]
            before += segment.tokens
        shares.index_add_(0, places, weights)
    return shares / len(steady)


def _head_shares(queries: Tensor, steady: Tensor, index: HeadIndex) -> tuple[Tensor, Tensor]:
    """Tokens (in the order of the store) and their mean shares; queries [R, D] with the scale."""
    norms = queries.square().sum(dim=1, keepdim=True)
    masses = log_mass(
        queries @ index.clusters.keys.T, index.sizes.log(), norms * index.clusters.spreads
    )
    near = torch.logsumexp(queries @ steady.T, dim=1, keepdim=True)
    z = torch.logsumexp(torch.cat((masses, near), dim=1), dim=1, keepdim=True)
    order = torch.argsort(torch.exp(masses - z).sum(0), descending=True)
    chosen = order[index.sizes[order].cumsum(0) <= LOOKED_AT]
    tokens = index.inside_clusters(chosen)
    scores = queries @ index.rows(tokens)[0].float().T
    masses[:, chosen] = -torch.inf
    z = torch.logsumexp(torch.cat((masses, near, scores), dim=1), dim=1, keepdim=True)
    return tokens, torch.exp(scores - z).mean(0)


def _by_head(queries: Tensor, kv_heads: int) -> Sequence[Tensor]:
    """[S, Hq, D] -> per KV head float32 [S * G, D], the scale in it."""
    steps, heads, dim = queries.shape
    grouped = queries.float().view(steps, kv_heads, heads // kv_heads, dim) * dim**-0.5
    return [grouped[:, head].reshape(-1, dim) for head in range(kv_heads)]
