"""Groups the keys of one segment: centred spherical k-means, outliers taken out, CSR result.

Keys are centred on the segment's mean key per head (QKV biases put large constant offsets into
keys), assigned by inner product to unit centroids that start as every n-th key, and the tokens
farthest from their centroid become clusters of one. The result depends on nothing but the keys,
the settings, the device and the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.kmeans import assign, cluster_sizes, cluster_sums
from .zones import initial_centroids, outliers


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentClusters:
    """The clusters of one segment of N tokens, for H KV heads.

    Heads may have different numbers of clusters: C is the largest, the others are filled up with
    clusters of size 0.
    """

    permutation: Tensor
    """int64 [H, N]: the tokens of cluster i are `permutation[h, offsets[h, i]:offsets[h, i+1]]`."""
    offsets: Tensor
    """int64 [H, C + 1]."""
    mean_key: Tensor
    """float32 [H, D]: mean of the segment's keys."""
    centroids: Tensor
    """float32 [H, C, D]: mean key of a cluster, less `mean_key`."""
    value_sums: Tensor
    """float32 [H, C, D]."""
    spreads: Tensor
    """float32 [H, C]: mean over dimensions of the variance of the keys inside a cluster."""

    @property
    def sizes(self) -> Tensor:
        """int64 [H, C]."""
        return self.offsets.diff(dim=1)


def cluster_segment(keys: Tensor, values: Tensor, config: WaveConfig) -> SegmentClusters:
    """keys, values [H, N, D], N >= 1, keys after RoPE."""
    mean_key = keys.float().mean(dim=1)
    centred = keys.float() - mean_key[:, None]
    labels, clusters = _labels(centred, config)
    sizes = cluster_sizes(labels, clusters)
    labels, clusters, sizes = _drop_empty(labels, sizes)
    counts = sizes.clamp(min=1)[..., None]
    centroids = cluster_sums(centred, labels, clusters) / counts
    apart = centred - _of_cluster(centroids, labels)
    spreads = cluster_sums(apart.square().mean(dim=2, keepdim=True), labels, clusters) / counts
    offsets = torch.zeros(sizes.shape[0], clusters + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(sizes, dim=1, out=offsets[:, 1:])
    return SegmentClusters(
        permutation=torch.argsort(labels, dim=1, stable=True),
        offsets=offsets,
        mean_key=mean_key,
        centroids=centroids,
        value_sums=cluster_sums(values.float(), labels, clusters),
        spreads=spreads[..., 0],
    )


def _labels(centred: Tensor, config: WaveConfig) -> tuple[Tensor, int]:
    """Cluster of every token, int64 [H, N], and the number of clusters (some may be empty)."""
    tokens = centred.shape[1]
    count = initial_centroids(tokens, config)
    strided = torch.arange(count, device=centred.device) * tokens // count
    centroids = _unit(centred[:, strided])
    for _ in range(config.iterations):
        sums = cluster_sums(centred, assign(centred, centroids), count)
        empty = sums.square().sum(dim=2, keepdim=True) == 0
        centroids = torch.where(empty, centroids, _unit(sums))
    labels = assign(centred, centroids)
    alone = outliers(tokens, config)
    if alone == 0:
        return labels, count
    sizes = cluster_sizes(labels, count)
    means = cluster_sums(centred, labels, count) / sizes.clamp(min=1)[..., None]
    distance = (centred - _of_cluster(means, labels)).square().sum(dim=2)
    farthest = torch.topk(distance, alone, dim=1).indices
    own = count + torch.arange(alone, device=labels.device).expand_as(farthest)
    return labels.scatter(1, farthest, own), count + alone


def _drop_empty(labels: Tensor, sizes: Tensor) -> tuple[Tensor, int, Tensor]:
    """Renumbers the clusters of each head so that the empty ones come last, then cuts them."""
    used = sizes > 0
    number = used.cumsum(dim=1) - 1
    clusters = int(used.sum(dim=1).max())
    labels = torch.gather(number, 1, labels)
    return labels, clusters, cluster_sizes(labels, clusters)


def _of_cluster(rows: Tensor, labels: Tensor) -> Tensor:
    """Each token's row. rows [H, C, D], labels [H, N] -> [H, N, D]."""
    return torch.gather(rows, 1, labels[..., None].expand(-1, -1, rows.shape[2]))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)
