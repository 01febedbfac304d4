"""Rotation of one token's heads, compiled for CPUs: one call for ten, the same bits."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .jit_numba import KINDS, jit, pointer, put, to_float


@jit(entry=True)
def _turn(x, cos, sin, out, heads, dim, half, kind):
    shape, of = (heads, dim), kind.dtype
    turns = carray(pointer(cos), half, of), carray(pointer(sin), half, of)
    _heads(carray(pointer(x), shape, of), turns[0], turns[1], carray(pointer(out), shape, of))


@jit(allocates=True)
def _heads(x, cos, sin, out):
    """Products are rounded before they are added, as PyTorch does."""
    (heads, dim), half = x.shape, len(cos)
    left, right = np.empty(half, x.dtype), np.empty(half, x.dtype)
    for h in range(heads):
        first, second, into = x[h, :half], x[h, half : 2 * half], out[h]
        for i in range(half):
            put(left, i, to_float(first[i]) * to_float(cos[i]))
            put(right, i, to_float(second[i]) * to_float(sin[i]))
        for i in range(half):
            put(into, i, to_float(left[i]) - to_float(right[i]))
        for i in range(half):
            put(left, i, to_float(second[i]) * to_float(cos[i]))
            put(right, i, to_float(first[i]) * to_float(sin[i]))
        for i in range(half):
            put(into, half + i, to_float(left[i]) + to_float(right[i]))
        for i in range(2 * half, dim):
            into[i] = x[h, i]


def apply_rope_numba(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rope` for x [H, 1, D] of contiguous 16 bits."""
    out = torch.empty_like(x)
    at = (part.data_ptr() for part in (x, cos, sin, out))
    _turn(*at, x.shape[0], x.shape[2], cos.shape[1], KINDS[x.dtype])
    return out
