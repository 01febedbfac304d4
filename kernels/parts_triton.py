"""Pieces that several Triton kernels are made of: products, log-sum-exp, log masses, searches.

Shapes in comments: `GP` query heads of a KV head, padded to at least 16 for `tl.dot`; `DP`
dimensions, padded to a power of two; the padding is masked when it is loaded and never stored.
Addresses are int64 numbers in tables, so that a kernel reads a segment where it lies: in GPU
memory, in a slot, or in pinned memory of the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .wave_attention import BUCKET_SHIFT, BUCKETS, LOWEST_BUCKET

ELEMENT_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int8: tl.int8,
    torch.uint8: tl.uint8,
}

_SHIFT = tl.constexpr(BUCKET_SHIFT)
_LOWEST = tl.constexpr(LOWEST_BUCKET)
_BUCKETS = tl.constexpr(BUCKETS)
ONE = tl.constexpr(float(1 << 44))
"""Masses are summed as integers of this unit: the sum does not depend on the order."""


def padded_group(group: int) -> int:
    """Rows of a tile of so many query heads."""
    return max(16, triton.next_power_of_2(group))


def wide(*dtypes: torch.dtype) -> bool:
    """Whether products of these have to be taken in float32.

    So they are where the types of two factors differ, and under the interpreter, whose product of
    bfloat16 is wrong. int8 and int4 rows become what the query is.
    """
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    return floats != {torch.float16} and (
        floats != {torch.bfloat16} or bool(triton.knobs.runtime.interpret)
    )


def contiguous(*tensors: Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


@triton.jit
def dot(a, b, WIDE: tl.constexpr):
    """a [M, K] times b [K, N] in float32."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a, b.to(a.dtype))


@triton.constexpr_function
def aligned(size):
    """The largest power of two, up to 16, that divides rows of so many bytes."""
    return (size | 16) & -(size | 16)


@triton.jit
def load_rows(addresses, valid, dims, D: tl.constexpr, ELEMENT: tl.constexpr, ALIGN: tl.constexpr):
    """Rows of D elements at int64 addresses [N] -> [N, DP], 0 where not valid.

    ALIGN: bytes that divide all addresses; loads are as wide.
    """
    pointers = tl.multiple_of(addresses.to(tl.pointer_type(ELEMENT)), ALIGN)
    pointers = pointers[:, None] + dims[None, :]
    return tl.load(pointers, mask=valid[:, None] & (dims < D)[None, :], other=0)


@triton.jit
def load_scales(addresses, valid):
    """bfloat16 scales at int64 addresses [N] -> float32 [N]."""
    pointers = addresses.to(tl.pointer_type(tl.bfloat16))
    return tl.load(pointers, mask=valid, other=0).to(tl.float32)


@triton.jit
def load_query(q, head, G: tl.constexpr, D: tl.constexpr, GP: tl.constexpr, DP: tl.constexpr):
    """The queries [GP, DP] of one KV head; q [Hq, D], contiguous."""
    rows, dims = tl.arange(0, GP), tl.arange(0, DP)
    pointers = q + (head * G + rows)[:, None] * D + dims[None, :]
    return tl.load(pointers, mask=(rows < G)[:, None] & (dims < D)[None, :], other=0)


@triton.jit
def log_mass(scores, sizes, variance):
    """See `wave_attention.log_mass`; sizes float32, 0 gives -inf."""
    held = tl.log(tl.maximum(sizes, 1.0))
    frozen = tl.sqrt(2 * variance * held) - held
    mass = scores + held + tl.where(variance <= 2 * held, variance * 0.5, frozen)
    return tl.where(sizes > 0, mass, float("-inf"))


@triton.jit
def finite(x):
    """0 instead of -inf."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def grow_lse(top, total, masses):
    """A running log-sum-exp (top [R], total [R]) takes up masses [R, N]."""
    new = tl.maximum(top, tl.max(masses, 1))
    safe = finite(new)
    total = total * tl.exp(top - safe) + tl.sum(tl.exp(masses - safe[:, None]), 1)
    return new, total


@triton.jit
def lse_of(top, total):
    """log(total) + top, -inf for nothing."""
    lse = finite(top) + tl.log(tl.maximum(total, 1e-37))
    return tl.where(total > 0, lse, float("-inf"))


@triton.jit
def grow_from(top, total, parts, count, stride, G: tl.constexpr, GP: tl.constexpr):
    """A running log-sum-exp takes up parts [G, count] in memory, `stride` from row to row."""
    rows, lanes = tl.arange(0, GP), tl.arange(0, 64)
    for start in range(0, count, 64):
        valid = (rows < G)[:, None] & (start + lanes < count)[None, :]
        pointers = parts + rows[:, None] * stride + start + lanes[None, :]
        masses = tl.load(pointers, mask=valid, other=float("-inf"))
        top, total = grow_lse(top, total, masses)
    return top, total


@triton.jit
def bucket_of(ranks):
    """See `wave_attention.buckets`."""
    bits = ranks.to(tl.int32, bitcast=True) >> _SHIFT
    return tl.minimum(tl.maximum(bits - _LOWEST, 0), _BUCKETS - 1)


@triton.jit
def count_ranks(hist, ranks, masses, sizes, valid):
    """Adds entries to a histogram int64 [3, BUCKETS]: numbers, tokens, masses in units of ONE.

    Integers only: the sums are the same in whatever order the programs come.
    """
    buckets, sizes = bucket_of(ranks), sizes.to(tl.int64)
    masses = (masses * ONE).to(tl.int64)
    # Most fall into the lowest bucket: one addition for all of them.
    low, high = valid & (buckets == 0), valid & (buckets > 0)
    tl.atomic_add(hist, tl.sum(low.to(tl.int64)))
    tl.atomic_add(hist + _BUCKETS, tl.sum(tl.where(low, sizes, 0)))
    tl.atomic_add(hist + 2 * _BUCKETS, tl.sum(tl.where(low, masses, 0)))
    tl.atomic_add(hist + buckets, high.to(tl.int64), mask=high)
    tl.atomic_add(hist + _BUCKETS + buckets, sizes, mask=high)
    tl.atomic_add(hist + 2 * _BUCKETS + buckets, masses, mask=high)


@triton.jit
def find_run(prefix, count, wanted):
    """The first of `count` runs whose inclusive prefix sum exceeds `wanted` [N]: int32 [N]."""
    low, left = tl.zeros_like(wanted), count
    while left > 1:
        half = left // 2
        right = tl.load(prefix + low + half - 1) <= wanted
        low = tl.where(right, low + half, low)
        left = left - half
    return low
