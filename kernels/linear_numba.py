"""One row times a matrix in 16 bits, compiled for CPUs: the matrix is read once, where it lies.

Rows of the matrix are shared out between PyTorch's number of threads; each sum is taken by one
thread, so a result does not depend on how many there are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .jit_numba import jit, to_float
from .team import together

BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
"""How numba, which knows neither type, is given them; see `to_float`."""


@jit(entry=True)
def _products(weight, x, out, first, last):
    """out[i] = weight[i] . x for first <= i < last.

    Two rows that lie apart at a time: processors read two runs of memory ahead faster than one.
    """
    columns, half = weight.shape[1], (last - first) // 2
    for i in range(first, first + half):
        one, other = weight[i], weight[i + half]
        a = b = np.float32(0.0)
        for k in range(columns):
            a += to_float(one[k]) * x[k]
            b += to_float(other[k]) * x[k]
        out[i], out[i + half] = a, b
    for i in range(first + 2 * half, last):
        row, a = weight[i], np.float32(0.0)
        for k in range(columns):
            a += to_float(row[k]) * x[k]
        out[i] = a


def linear_numba(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` for x [1, K] and a contiguous weight [N, K], both in bfloat16 or both in float16."""
    out = torch.empty(1, weight.shape[0])
    matrix, into = weight.detach().view(BITS[weight.dtype]).numpy(), out.numpy()[0]
    row, members = x.float().numpy()[0], torch.get_num_threads()

    def share(number: int) -> None:
        first, last = (len(matrix) * n // members for n in (number, number + 1))
        _products(matrix, row, into, first, last)

    together(members, share)
    if bias is not None:
        out += bias
    return out.to(x.dtype)
