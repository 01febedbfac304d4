"""The two steps of spherical k-means, for several heads at once.

All are deterministic for a device and a number of threads: ties go to the lowest cluster, sums are
taken in the order of the tokens. `assign` and `cluster_sums` choose between the reference and, on
a GPU, `kmeans_triton`; on a CPU the largest products are found by compiled code where it is
loaded.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

BLOCK = 1024
"""Tokens that are compared with all centroids at once on a CPU."""


def assign(keys: Tensor, centroids: Tensor) -> Tensor:
    """Nearest centroid by inner product. keys [H, N, D], centroids [H, C, D] -> int64 [H, N]."""
    if keys.device.type == "cuda":
        from .kmeans_triton import assign_triton

        return assign_triton(keys, centroids)
    return assign_reference(keys, centroids)


def assign_reference(keys: Tensor, centroids: Tensor) -> Tensor:
    """See `assign`. Block by block: the products are looked at while they are in a CPU's cache."""

    def of_head(rows: Tensor, centres: Tensor) -> Tensor:
        return torch.cat([_largest(block @ centres.T) for block in torch.split(rows, BLOCK)])

    return torch.stack([of_head(k, c) for k, c in zip(keys, centroids, strict=True)])


def _largest(products: Tensor) -> Tensor:
    """The column of the largest of each row. [N, C] -> int64 [N]."""
    # Both find the same. The compiler is not loaded for this alone: memory for 0.1 s a segment.
    loaded = "numba" in sys.modules
    if loaded and products.device.type == "cpu" and products.dtype == torch.float32:
        from .kmeans_numba import first_highest

        return first_highest(products)
    return torch.argmax(products, dim=1)


def cluster_sums(rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Sum of the rows of each cluster. rows [H, N, D], labels int64 [H, N] -> [H, clusters, D]."""
    if rows.device.type == "cuda":
        from .kmeans_triton import cluster_sums_triton

        return cluster_sums_triton(rows, labels, clusters)
    return cluster_sums_reference(rows, labels, clusters)


def cluster_sums_reference(rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """See `cluster_sums`."""
    heads, _, dim = rows.shape
    offset = torch.arange(heads, device=rows.device)[:, None] * clusters
    sums = torch.zeros(heads * clusters, dim, dtype=rows.dtype, device=rows.device)
    sums.index_add_(0, (labels + offset).reshape(-1), rows.reshape(-1, dim))
    return sums.view(heads, clusters, dim)


def cluster_sizes(labels: Tensor, clusters: int) -> Tensor:
    """Number of tokens of each cluster. labels int64 [H, N] -> int64 [H, clusters]."""
    sizes = torch.zeros(labels.shape[0], clusters, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(1, labels, torch.ones_like(labels))
