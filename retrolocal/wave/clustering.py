"""Groups the keys of one segment: clusters, groups of clusters, and their sums as the index keeps.

Keys are centred on the segment's mean key per head (QKV biases put large constant offsets into
keys), assigned by inner product to unit centroids that start as every n-th key, and the tokens
farthest from their centroid become clusters of one. The centroids are grouped the same way. The
result depends on nothing but the keys, the settings, the device and the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.codecs import Codec, encode_rows
from ..kernels.kmeans import assign, cluster_sizes, cluster_sums
from ..kernels.segment import Level, Segment
from .zones import groups, initial_centroids, outliers

INDEX_DTYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "f32": torch.float32}


def cluster_segment(keys: Tensor, values: Tensor, config: WaveConfig) -> tuple[Segment, Tensor]:
    """keys, values [H, N, D], N >= 1, keys after RoPE.

    Returns the segment, and int32 [H, N]: which of the given tokens is its n-th.
    """
    heads, tokens, _ = keys.shape
    mean_key = keys.float().mean(dim=1)
    centred = keys.float() - mean_key[:, None]
    labels, grouped = _labels(centred, config)
    singles = outliers(tokens, config)
    clusters = grouped + singles
    labels, offsets = _grouped(centred, labels, grouped, clusters, config)

    sizes = cluster_sizes(labels, clusters)
    fine = _sums(centred, values, labels, sizes)
    keys_, sums, spreads = (rows[:, :grouped] for rows in fine)
    coarse = _merged(keys_, sums, spreads, sizes[:, :grouped], offsets)
    starts = torch.zeros(heads, clusters + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(sizes, dim=1, out=starts[:, 1:])
    permutation = torch.argsort(labels, dim=1, stable=True)
    order = permutation[..., None].expand_as(keys)
    level, codec = _level(*fine, config), Codec.of(config.store_type, keys.dtype)
    segment = Segment(
        mean_key=mean_key,
        fine=level,
        coarse=_level(*coarse, config),
        starts=starts.int(),
        group_offsets=offsets.int(),
        singles=singles,
        codec=codec,
        blocks=codec.encode(
            keys.gather(1, order),
            values.gather(1, order),
            starts,
            torch.stack([level.keys(head) + mean_key[head] for head in range(heads)]),
        ),
    )
    return segment, permutation.int()


def _labels(centred: Tensor, config: WaveConfig) -> tuple[Tensor, int]:
    """Cluster of every token, int64 [H, N], and how many clusters k-means made.

    The outliers' numbers come after those; some clusters may be empty.
    """
    tokens = centred.shape[1]
    count = initial_centroids(tokens, config)
    labels = _k_means(centred, centred, count, config.iterations)
    alone = outliers(tokens, config)
    if alone == 0:
        return labels, count
    sizes = cluster_sizes(labels, count)
    means = cluster_sums(centred, labels, count) / sizes.clamp(min=1)[..., None]
    # To the mean of the others: a token that has a cluster to itself is far from all of them.
    held = sizes.gather(1, labels).float()
    distance = (centred - _of_cluster(means, labels)).square().sum(dim=2)
    distance = distance * (held / (held - 1).clamp(min=1)).square()
    distance = torch.where(held == 1, centred.square().sum(dim=2), distance)
    farthest = torch.topk(distance, alone, dim=1).indices.sort(dim=1).values
    own = count + torch.arange(alone, device=labels.device).expand_as(farthest)
    return labels.scatter(1, farthest, own), count


def _grouped(
    centred: Tensor, labels: Tensor, grouped: int, clusters: int, config: WaveConfig
) -> tuple[Tensor, Tensor]:
    """Renumbers clusters so that groups are contiguous, then the empty ones, then the singles.

    Returns the labels and group offsets int64 [H, M + 1].
    """
    sizes = cluster_sizes(labels, clusters)[:, :grouped]
    sums = cluster_sums(centred, labels, clusters)[:, :grouped]
    means = sums / sizes.clamp(min=1)[..., None]
    count = groups(grouped, config)
    group = _k_means(means, sums, count, config.iterations)
    group = group.masked_fill(sizes == 0, count)
    order = torch.argsort(group, dim=1, stable=True)
    number = torch.arange(clusters, device=labels.device).repeat(labels.shape[0], 1)
    number[:, :grouped].scatter_(1, order, number[:, :grouped].clone())
    offsets = torch.zeros(labels.shape[0], count + 1, dtype=torch.int64, device=labels.device)
    torch.cumsum(cluster_sizes(group, count + 1)[:, :count], dim=1, out=offsets[:, 1:])
    return number.gather(1, labels), offsets


def _k_means(rows: Tensor, weighted: Tensor, count: int, iterations: int) -> Tensor:
    """Spherical k-means from every n-th row: int64 [H, N].

    rows float32 [H, N, D] are assigned, `weighted` [H, N, D] (rows times their weight) summed.
    """
    strided = torch.arange(count, device=rows.device) * rows.shape[1] // count
    centroids = _unit(rows[:, strided])
    labels = assign(rows, centroids)
    for _ in range(iterations):
        sums = cluster_sums(weighted, labels, count)
        empty = sums.square().sum(dim=2, keepdim=True) == 0
        centroids = torch.where(empty, centroids, _unit(sums))
        labels = assign(rows, centroids)
    return labels


def _sums(
    centred: Tensor, values: Tensor, labels: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Centroids [H, C, D], value sums [H, C, D] and spreads [H, C] of clusters, float32."""
    clusters, counts = sizes.shape[1], sizes.clamp(min=1)[..., None]
    centroids = cluster_sums(centred, labels, clusters) / counts
    apart = (centred - _of_cluster(centroids, labels)).square().mean(dim=2, keepdim=True)
    spreads = cluster_sums(apart, labels, clusters) / counts
    # A cluster of one is its key: what rounding left of its spread is not one.
    spreads = spreads[..., 0].masked_fill(sizes <= 1, 0.0)
    return centroids, cluster_sums(values.float(), labels, clusters), spreads


def _merged(
    centroids: Tensor, value_sums: Tensor, spreads: Tensor, sizes: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of groups from those of their clusters: [H, M, D], [H, M, D], [H, M]."""
    count = offsets.shape[1] - 1
    group, weight = _of_run(offsets, centroids.shape[1]), sizes.float()[..., None]

    def total(rows: Tensor) -> Tensor:
        return cluster_sums(rows, group, count + 1)

    tokens = total(weight).clamp(min=1)
    means = total(centroids * weight) / tokens
    apart = (centroids - _of_cluster(means, group)).square().mean(dim=2, keepdim=True)
    variance = total((spreads[..., None] + apart) * weight) / tokens
    return means[:, :count], total(value_sums)[:, :count], variance[:, :count, 0]


def _level(centroids: Tensor, value_sums: Tensor, spreads: Tensor, config: WaveConfig) -> Level:
    dtype = INDEX_DTYPES[config.index_type]
    (keys, key_scales), (sums, sum_scales) = (
        encode_rows(rows, dtype) for rows in (centroids, value_sums)
    )
    return Level(
        centroids=keys,
        value_sums=sums,
        scales=torch.cat((key_scales, sum_scales), dim=-1).contiguous(),
        spreads=spreads.bfloat16().contiguous(),
    )


def _of_run(offsets: Tensor, count: int) -> Tensor:
    """Number of the run each of `count` things lies in, int64 [H, count]; M after the last run."""
    things = torch.arange(count, device=offsets.device).expand(offsets.shape[0], -1).contiguous()
    return torch.searchsorted(offsets[:, 1:].contiguous(), things, right=True)


def _of_cluster(rows: Tensor, labels: Tensor) -> Tensor:
    """Each token's row. rows [H, C, D], labels [H, N] -> [H, N, D]."""
    return torch.gather(rows, 1, labels[..., None].expand(-1, -1, rows.shape[2]))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)
