"""The two steps of k-means on a GPU: `kmeans.assign` and `kmeans.cluster_sums`.

Both are deterministic: ties go to the lowest cluster, and a cluster's tokens are summed one after
another in their order, by one program, without atomics. Products are taken in TF32: the centroid
that is found has the largest inner product up to its rounding (2^-10 of the norms).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

EMPTY = tl.constexpr(float("-inf"))


def assign_triton(keys: Tensor, centroids: Tensor) -> Tensor:
    """See `kmeans.assign`. keys [H, N, D], centroids [H, C, D] of one dtype."""
    heads, tokens, dim = keys.shape
    labels = torch.empty(heads, tokens, dtype=torch.int64, device=keys.device)
    if tokens == 0:
        return labels
    assert keys.stride(2) == centroids.stride(2) == 1, "rows have to be contiguous"
    grid = (triton.cdiv(tokens, 64), heads)
    _assign_kernel[grid](
        keys, centroids, labels, tokens, centroids.shape[1],
        keys.stride(0), keys.stride(1), centroids.stride(0), centroids.stride(1),
        D=dim, DP=max(16, triton.next_power_of_2(dim)), ROWS=64, BLOCK=64 if dim <= 128 else 32,
    )  # fmt: skip
    return labels


def cluster_sums_triton(rows: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """See `kmeans.cluster_sums`. rows [H, N, D], labels int64 [H, N] -> rows' dtype."""
    heads, tokens, dim = rows.shape
    sums = torch.empty(heads, clusters, dim, dtype=rows.dtype, device=rows.device)
    if sums.numel() == 0:
        return sums
    assert rows.stride(2) == 1, "rows have to be contiguous"
    ordered, order = torch.sort(labels, dim=1, stable=True)
    bounds = torch.arange(clusters + 1, device=labels.device).expand(heads, -1).contiguous()
    starts = torch.searchsorted(ordered, bounds)
    _sums_kernel[(clusters, heads)](
        rows, order, starts, sums, tokens, clusters, rows.stride(0), rows.stride(1),
        D=dim, DP=triton.next_power_of_2(dim), BLOCK=16,
    )  # fmt: skip
    return sums


@triton.jit
def _assign_kernel(
    keys,
    centroids,
    labels,
    tokens,
    clusters,
    key_head,
    key_row,
    centroid_head,
    centroid_row,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """argmax_c keys . centroids_c; grid (tiles of tokens, H)."""
    h, dims, lanes = tl.program_id(1).to(tl.int64), tl.arange(0, DP), tl.arange(0, BLOCK)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (t < tokens)[:, None] & (dims < D)[None, :]
    place = keys + h * key_head + t.to(tl.int64)[:, None] * key_row + dims[None, :]
    rows = tl.load(place, mask=there, other=0).to(tl.float32)  # [ROWS, DP]
    best = tl.full([ROWS], EMPTY, tl.float32)
    label = tl.zeros([ROWS], tl.int32)
    for start in range(0, clusters, BLOCK):
        c = start + lanes
        others_at = centroids + h * centroid_head + c.to(tl.int64)[:, None] * centroid_row
        held = (c < clusters)[:, None] & (dims < D)[None, :]
        others = tl.load(others_at + dims[None, :], mask=held, other=0).to(tl.float32)
        scores = tl.dot(rows, tl.trans(others), input_precision="tf32")  # [ROWS, BLOCK]
        scores = tl.where((c < clusters)[None, :], scores, EMPTY)
        top = tl.max(scores, 1)
        first = tl.min(tl.where(scores == top[:, None], c[None, :], clusters), 1)
        label = tl.where(top > best, first.to(tl.int32), label)
        best = tl.maximum(best, top)
    tl.store(labels + h * tokens + t, label.to(tl.int64), mask=t < tokens)


@triton.jit
def _sums_kernel(
    rows,
    order,
    starts,
    sums,
    tokens,
    clusters,
    row_head,
    row_stride,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """sum_{j in c} rows_j, the members of cluster c being order[starts[c] : starts[c + 1]].

    Grid (clusters, H).
    """
    c, h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dims, lanes = tl.arange(0, DP), tl.arange(0, BLOCK)
    bounds = starts + h * (clusters + 1) + c
    first, last = tl.load(bounds), tl.load(bounds + 1)
    total = tl.zeros([DP], tl.float32)
    for start in range(first, last, BLOCK):
        t = start + lanes
        member = tl.load(order + h * tokens + t, mask=t < last, other=0)
        place = rows + h * row_head + member[:, None] * row_stride + dims[None, :]
        there = (t < last)[:, None] & (dims < D)[None, :]
        total += tl.sum(tl.load(place, mask=there, other=0).to(tl.float32), 0)
    place = sums + (h * clusters + c) * D + dims
    tl.store(place, total.to(sums.dtype.element_ty), mask=dims < D)
