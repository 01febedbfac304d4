"""Which clusters decode steps retrieve, and what a block cache makes of them.

A trace is recorded with every cluster scored, as a step does that descends into all groups, under
the budget of the default settings. It is played against the program's own block cache, without
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.attention import full_attention
from ..kernels.segment import Segment
from ..kernels.wave_attention import log_mass, select
from ..wave.buffer.policy import PolicyName
from ..wave.buffer.slots import NONE, BlockCache, slot_classes
from ..wave.buffer.table import Ints
from ..wave.index import selection

Trace = list[Ints]
"""Keys of each step, as `ClusterTable` numbers them, in order."""


class Recorder:
    """Ranks the clusters of all segments under a query; keeps their centroids in float32."""

    def __init__(
        self, segments: Sequence[Segment], steady: tuple[Tensor, Tensor], config: WaveConfig
    ) -> None:
        """`steady`: K and V [Hkv, n, D] of what is always attended exactly."""
        self._steady, self._selection = steady, selection(config)
        kv_heads, first = len(steady[0]), 0
        self._heads: list[_Clusters] = []
        firsts = []
        for segment in segments:
            firsts.append(first)
            first += kv_heads * segment.clusters
        for head in range(kv_heads):
            parts = [
                _Clusters.of(segment, head, start)
                for segment, start in zip(segments, firsts, strict=True)
            ]
            self._heads.append(_Clusters.together(parts))

    def retrieved(self, q: Tensor) -> Ints:
        """Keys of what a step with q [Hq, D] retrieves."""
        scale = q.shape[1] ** -0.5
        _, lse = full_attention(q[:, None].float(), *(t.float() for t in self._steady), scale=scale)
        groups = (q.float() * scale).chunk(len(self._heads)), lse[:, 0].chunk(len(self._heads))
        keys = [
            self._of_head(clusters, own, near)
            for clusters, own, near in zip(self._heads, *groups, strict=True)
        ]
        return np.sort(np.concatenate(keys))

    def _of_head(self, clusters: _Clusters, q: Tensor, steady: Tensor) -> Ints:
        """One KV head: q float32 [G, D] with the scale in it, lse [G] of the steady zone."""
        chosen, tokens = self._selection, int(clusters.sizes.sum())
        variance = q.square().sum(1, keepdim=True) * clusters.spreads
        mass = log_mass(q @ clusters.keys.T, clusters.sizes.float().log(), variance)
        z = torch.logsumexp(torch.cat((mass, steady[:, None]), dim=1), dim=1, keepdim=True)
        shares = torch.exp(mass - z)
        taken = select(
            shares.sum(0),
            clusters.sizes,
            mass=float(shares.sum(dtype=torch.float64)),
            tokens=int(min(chosen.most, max(math.ceil(chosen.tokens * tokens), chosen.least))),
            clusters=len(clusters.sizes),
            floor=chosen.floor,
            epsilon=chosen.epsilon * len(q),
        )
        return clusters.numbers[taken & (clusters.sizes > 0)].numpy()


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Of one KV head."""

    numbers: Tensor
    """int64 [C]: their keys."""
    keys: Tensor
    """float32 [C, D]: centroids."""
    sizes: Tensor
    """int64 [C]."""
    spreads: Tensor
    """float32 [C]."""

    @classmethod
    def of(cls, segment: Segment, head: int, first: int) -> _Clusters:
        start = first + head * segment.clusters
        return cls(
            torch.arange(start, start + segment.clusters),
            segment.fine.keys(head) + segment.mean_key[head],
            segment.starts[head].diff().long(),
            segment.fine.spreads[head].float(),
        )

    @classmethod
    def together(cls, parts: Sequence[_Clusters]) -> _Clusters:
        return cls(
            torch.cat([part.numbers for part in parts]),
            torch.cat([part.keys for part in parts]),
            torch.cat([part.sizes for part in parts]),
            torch.cat([part.spreads for part in parts]),
        )


def guesses(q: Tensor, foresight: float, seed: int) -> Tensor:
    """Queries [S, Hq, D] of the same lengths whose cosine to `q` is about `foresight`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(q.shape, generator=generator)
    aim, noise = (torch.nn.functional.normalize(t, dim=2) for t in (q.float(), noise))
    mixed = foresight * aim + math.sqrt(1 - foresight**2) * noise
    guess = torch.nn.functional.normalize(mixed, dim=2) * q.float().norm(dim=2, keepdim=True)
    result: Tensor = guess.to(q.dtype)
    return result


def recall(trace: Trace, guessed: Trace) -> float:
    """Share of what steps retrieve that was guessed."""
    found = sum(len(np.intersect1d(a, b)) for a, b in zip(trace, guessed, strict=True))
    return found / max(1, sum(map(len, trace)))


@dataclass(frozen=True, slots=True)
class Replay:
    hit_ratio: float
    """Share of the retrieved clusters that were in the block cache."""
    missed_bytes: float
    """Per step, to be read from the slow tier."""
    cache_bytes: int
    slots: int


def replay(
    trace: Trace, lengths: Ints, capacity: int, token_bytes: int, policy: PolicyName
) -> Replay:
    """Plays a trace against an empty block cache; nothing is read ahead."""
    cache = BlockCache(slot_classes(lengths, capacity, token_bytes), policy)
    cache.grow(len(lengths))
    hits = missed = 0
    for keys in trace:
        slots = cache.lookup(keys)
        found, absent = slots[slots != NONE], keys[slots == NONE]
        cache.touch(found)
        cache.pin(found)
        own = cache.claim(absent, lengths[absent])
        own = own[own != NONE]
        cache.publish(own)
        cache.unpin(found)
        cache.settle()
        hits += len(found)
        missed += int(lengths[absent].sum())
    asked = sum(map(len, trace))
    return Replay(hits / max(1, asked), missed / max(1, len(trace)), cache.bytes, cache.slots)
