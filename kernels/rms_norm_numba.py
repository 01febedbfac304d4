"""Root-mean-square normalisation of one token, compiled for CPUs: one call for eight."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .jit_numba import jit, pointer, put, to_float

CODES = {torch.bfloat16: 0, torch.float16: 1}


@jit(entry=True)
def _normalise(x, weight, out, rows, columns, eps, unit, code):
    shape = rows, columns
    if code == 0:
        _rows(
            carray(pointer(x), shape, np.uint16),
            carray(pointer(weight), columns, np.uint16),
            carray(pointer(out), shape, np.uint16),
            eps,
            unit,
        )
    else:
        _rows(
            carray(pointer(x), shape, np.int16),
            carray(pointer(weight), columns, np.int16),
            carray(pointer(out), shape, np.int16),
            eps,
            unit,
        )


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
    _normalise(*at, rows, columns, eps, unit, CODES[x.dtype])
    return out
