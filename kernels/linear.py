"""Products with a weight matrix: where a decoder's time goes.

`linear` chooses. PyTorch multiplies, but for one row in 16 bits on a CPU, which is a decode step:
that should take as long as reading the matrix does, and PyTorch's library takes several times as
long (PERFORMANCE.md). Knows no model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .compiled import compiled

SMALLEST = 1 << 20
"""Numbers in a matrix from which on compiled code is called; a guess, smaller ones cost little."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plus bias [N]: [T, N], all of one dtype.

    Sums are taken in float32 or wider and rounded once before the bias is added, or after.
    """
    if x.shape[0] == 1 and weight.numel() >= SMALLEST and _read_in_place(x, weight):
        from .linear_numba import linear_numba

        return linear_numba(x, weight, bias)
    return linear_reference(x, weight, bias)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by PyTorch, on any device."""
    return F.linear(x, weight, bias)


def _read_in_place(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and compiled()
    )
