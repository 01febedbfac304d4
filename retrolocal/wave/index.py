"""The wave index: what a query reads to know which clusters matter, and to estimate the others.

Per KV head and cluster: centroid, value sum, size, spread and where its tokens lie in the store.
The log mass of cluster i under a query q is, with g_i its spread and t_i = scale |q| sqrt(g_i) the
standard deviation of the logits inside it,

    log m_i(q) = log s_i + scale q.c_i + t_i^2 / 2                      while t_i^2 <= 2 log s_i
    log m_i(q) =           scale q.c_i + t_i sqrt(2 log s_i)            beyond

The first line is the second-order estimate. Beyond, a sum of s_i exponentials is ruled by its
largest term and no longer grows with the square (the random energy model, Derrida 1981). To first
order, as RetroInfer has it, t_i is 0. The index never sees keys or values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .clustering import SegmentClusters


class WaveIndex:
    """Clusters of all segments; arrays double when they are full."""

    def __init__(self) -> None:
        self.clusters = 0
        """Clusters per KV head; heads with fewer are filled up with clusters of size 0."""
        self._ends: list[int] = []
        self._mean_keys: list[Tensor] = []
        self._centroids = torch.empty(0)
        self._value_sums = torch.empty(0)
        self._log_sizes = torch.empty(0)
        self._spreads = torch.empty(0)
        self._starts = torch.empty(0, dtype=torch.int64)
        self._sizes = torch.empty(0, dtype=torch.int64)
        self._segment = torch.empty(0, dtype=torch.int64)

    @property
    def segments(self) -> int:
        return len(self._ends)

    def append(self, new: SegmentClusters) -> None:
        """Adds the clusters of the next segment."""
        heads, count, dim = new.centroids.shape
        self._reserve(self.clusters + count, heads, dim, new.centroids.device)
        rows = slice(self.clusters, self.clusters + count)
        self._centroids[:, rows] = new.centroids
        self._value_sums[:, rows] = new.value_sums
        self._log_sizes[:, rows] = new.sizes.float().log()
        self._spreads[:, rows] = new.spreads
        self._starts[:, rows] = new.offsets[:, :-1]
        self._sizes[:, rows] = new.sizes
        self._segment[rows] = self.segments
        self._mean_keys.append(new.mean_key)
        self.clusters += count
        self._ends.append(self.clusters)

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""
        del self._ends[segments:], self._mean_keys[segments:]
        self.clusters = self._ends[-1] if self._ends else 0

    def occupied(self) -> list[int]:
        """Clusters of size at least 1, per KV head."""
        counts: list[int] = (self._sizes[:, : self.clusters] > 0).sum(dim=1).tolist()
        return counts

    def log_mass(self, q: Tensor, *, scale: float, second_order: bool) -> Tensor:
        """log m_i(q) for every cluster. q [Hkv, G, D] -> float32 [Hkv, G, C]; empty ones -inf."""
        q = q.float()
        means = torch.stack(self._mean_keys, dim=1)
        scores = q @ self._centroids[:, : self.clusters].transpose(1, 2)
        scores += (q @ means.transpose(1, 2))[:, :, self._segment[: self.clusters]]
        scores *= scale
        scores += self._log_sizes[:, None, : self.clusters]
        if second_order:
            scores += self._log_spread_gain(q, scale)
        return scores

    def _log_spread_gain(self, q: Tensor, scale: float) -> Tensor:
        """By how much unequal logits inside a cluster raise its log mass, [Hkv, G, C]."""
        norms = q.square().sum(dim=2, keepdim=True)
        variance = scale**2 * norms * self._spreads[:, None, : self.clusters]
        log_sizes = self._log_sizes[:, None, : self.clusters].clamp(min=0)
        frozen = torch.sqrt(2 * variance * log_sizes) - log_sizes
        return torch.where(variance <= 2 * log_sizes, variance / 2, frozen)

    def scores(self, log_mass: Tensor, *, sized: bool) -> Tensor:
        """The ranking of a KV head's clusters: softmax over clusters, summed over its queries.

        log_mass [Hkv, G, C] -> [Hkv, C]. Without `sized` the number of tokens does not count
        (the paper's ranking).
        """
        if not sized:
            sizes = self._log_sizes[:, None, : self.clusters]
            log_mass = (log_mass - sizes).masked_fill(sizes == -math.inf, -math.inf)
        return torch.softmax(log_mass, dim=-1).sum(dim=1)

    def estimate(self, log_mass: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of each query to clusters as if all their tokens weighed the same.

        log_mass [Hkv, G, C], -inf for clusters left out. Returns out float32 [Hkv, G, D] and
        lse [Hkv, G].
        """
        lse = torch.logsumexp(log_mass, dim=-1)
        safe = lse.masked_fill(lse == -math.inf, 0.0)
        sizes = self._sizes[:, None, : self.clusters].clamp(min=1)
        weights = torch.exp(log_mass - safe[..., None]) / sizes
        return weights @ self._value_sums[:, : self.clusters], lse

    def runs(self, head: int, clusters: Tensor) -> list[tuple[int, int, int]]:
        """(segment, start, stop) in the store of each of the given clusters of one KV head."""
        starts = self._starts[head, clusters]
        stops = starts + self._sizes[head, clusters]
        columns = (self._segment[clusters].tolist(), starts.tolist(), stops.tolist())
        return list(zip(*columns, strict=True))

    def _reserve(self, clusters: int, heads: int, dim: int, device: torch.device) -> None:
        held = self._segment.shape[0]
        if clusters <= held:
            return
        capacity = max(clusters, 2 * held)
        self._centroids = _grown(self._centroids, (heads, capacity, dim), 1, device)
        self._value_sums = _grown(self._value_sums, (heads, capacity, dim), 1, device)
        self._log_sizes = _grown(self._log_sizes, (heads, capacity), 1, device)
        self._spreads = _grown(self._spreads, (heads, capacity), 1, device)
        self._starts = _grown(self._starts, (heads, capacity), 1, device)
        self._sizes = _grown(self._sizes, (heads, capacity), 1, device)
        self._segment = _grown(self._segment, (capacity,), 0, device)


def _grown(old: Tensor, shape: tuple[int, ...], axis: int, device: torch.device) -> Tensor:
    """A larger array that begins with `old` along `axis`."""
    new = torch.empty(shape, dtype=old.dtype, device=device)
    if old.numel():
        new.narrow(axis, 0, old.shape[axis]).copy_(old)
    return new
