"""Root-mean-square normalisation of one token, compiled for CPUs: one call for eight."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .jit_numba import KINDS, jit, pointer, put, to_float


@jit(entry=True)
def _normalise(x, weight, out, rows, columns, eps, unit, kind):
    of = kind.dtype
    shape, weights = (rows, columns), carray(pointer(weight), columns, of)
    _rows(carray(pointer(x), shape, of), weights, carray(pointer(out), shape, of), eps, unit)


@jit()
def _rows(x, weight, out, eps, unit):
    rows, columns = x.shape
    for i in range(rows):
        one, into, total = x[i], out[i], np.float32(0.0)
        for k in range(columns):
            total += to_float(one[k]) * to_float(one[k])
        scale = np.float32(1.0) / np.sqrt(total / np.float32(columns) + np.float32(eps))
        if unit:
            for k in range(columns):
                wide = to_float(one[k]) * scale
                put(into, k, wide * (np.float32(1.0) + to_float(weight[k])))
        else:
            for k in range(columns):
                put(into, k, to_float(one[k]) * scale)
            for k in range(columns):
                put(into, k, to_float(into[k]) * to_float(weight[k]))


def rms_norm_numba(x: Tensor, weight: Tensor, eps: float, *, unit: bool) -> Tensor:
    """`rms_norm`, or with `unit` `unit_rms_norm`, of contiguous 16 bits."""
    out, columns = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // columns
    at = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    _normalise(*at, rows, columns, eps, unit, KINDS[x.dtype])
    return out
