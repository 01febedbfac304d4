"""Tripartite attention of one decode step: exact steady + exact retrieved + estimated rest.

The retrieval zone is chosen once per KV head from all queries that share it; what is not retrieved
is estimated through the index (the paper's scheme estimates part of it and drops the rest). The
three parts are merged by log-sum-exp (RetroInfer, arXiv 2505.02922, section 4.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.attention import full_attention, grouped, partial_attention
from ..kernels.merge import merge
from .index import WaveIndex
from .store import BlockStore
from .zones import estimated_clusters, retrieved_clusters


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step of one layer read; means over heads."""

    retrieved_tokens: float
    mass_exact: Tensor
    """Scalar: share of the attention mass that was attended exactly."""


def tripartite_attention(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    index: WaveIndex,
    store: BlockStore,
    config: WaveConfig,
) -> tuple[Tensor, StepRecord]:
    """q [Hq, 1, D], steady K and V [Hkv, S, D] with S >= 1; returns [Hq, 1, D] float32."""
    kv_heads, scale = steady[0].shape[0], q.shape[2] ** -0.5
    exact = full_attention(q, *steady, scale=scale)
    if index.clusters == 0:
        return exact[0].float(), StepRecord(0.0, torch.ones(()))
    queries = grouped(q, kv_heads)
    second_order = config.scheme == "wave"
    log_mass = index.log_mass(queries, scale=scale, second_order=second_order)
    order, retrieved = _ranking(index, log_mass, config)
    near, tokens = _retrieve(queries, index, store, order, retrieved, scale)
    exact = merge(exact, (near[0].reshape(q.shape), near[1].reshape(q.shape[:2])))
    rest = _estimate(index, log_mass, order, retrieved, config)
    out, lse = merge(exact, (rest[0].reshape(q.shape), rest[1].reshape(q.shape[:2])))
    record = StepRecord(tokens / kv_heads, torch.exp(exact[1] - lse).mean())
    return out, record


def _ranking(index: WaveIndex, log_mass: Tensor, config: WaveConfig) -> tuple[Tensor, list[int]]:
    """Cluster numbers best first [Hkv, C], and how many of them each KV head retrieves."""
    scores = index.scores(log_mass, sized=config.scheme == "wave")
    occupied = index.occupied()
    retrieved = [retrieved_clusters(count, config) for count in occupied]
    estimated = (
        estimated_clusters(count, chosen, config)
        for count, chosen in zip(occupied, retrieved, strict=True)
    )
    full = config.scheme == "paper"
    wanted = max(r + (e if full else 0) for r, e in zip(retrieved, estimated, strict=True))
    return torch.topk(scores, wanted, dim=1).indices, retrieved


def _retrieve(
    queries: Tensor,
    index: WaveIndex,
    store: BlockStore,
    order: Tensor,
    retrieved: list[int],
    scale: float,
) -> tuple[tuple[Tensor, Tensor], int]:
    """The retrieval zone: (out [Hkv, G, D], lse [Hkv, G]) and the tokens read, over all heads."""
    outs, lses, tokens = [], [], 0
    for head, chosen in enumerate(retrieved):
        k, v = store.gather(head, index.runs(head, order[head, :chosen]))
        out, lse = partial_attention(queries[head, None], k[None], v[None], scale=scale)
        outs.append(out)
        lses.append(lse)
        tokens += k.shape[0]
    return (torch.cat(outs), torch.cat(lses)), tokens


def _estimate(
    index: WaveIndex, log_mass: Tensor, order: Tensor, retrieved: list[int], config: WaveConfig
) -> tuple[Tensor, Tensor]:
    """The estimation zone: out [Hkv, G, D], lse [Hkv, G]."""
    kept = torch.full_like(log_mass, -math.inf) if config.scheme == "paper" else log_mass.clone()
    for head, chosen in enumerate(retrieved):
        if config.scheme == "paper":
            zone = order[head, chosen:]
            kept[head, :, zone] = log_mass[head, :, zone]
        else:
            kept[head, :, order[head, :chosen]] = -math.inf
    return index.estimate(kept)
