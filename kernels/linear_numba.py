"""One row times a matrix in 16 bits, compiled for CPUs: the matrix is read once, where it lies.

Threads, as many as PyTorch's, take pieces of some rows that others have not begun: a slow processor
does less. Pieces do not depend on how many threads there are, so neither does a result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .jit_numba import add_at, jit, to_float
from .team import together

BITS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
"""How numba, which knows neither type, is given them; see `to_float`."""


PIECE = 1 << 17
"""Numbers of the matrix that a thread takes at once."""


@jit(entry=True)
def _products(weight, x, out, begun, step):
    """out[i] = weight[i] . x, `step` rows at a time; at the address `begun` is the next one.

    Two rows that lie apart together: processors read two runs of memory ahead faster than one.
    """
    rows, columns = weight.shape
    first = add_at(begun, step)
    while first < rows:
        last = min(first + step, rows)
        half = (last - first) // 2
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
        first = add_at(begun, step)


def linear_numba(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` for x [1, K] and a contiguous weight [N, K], both in bfloat16 or both in float16."""
    out, begun = torch.empty(1, weight.shape[0]), torch.zeros(1, dtype=torch.int64)
    matrix, into = weight.detach().view(BITS[weight.dtype]).numpy(), out.numpy()[0]
    row, place, step = x.float().numpy()[0], begun.data_ptr(), max(2, PIECE // weight.shape[1])
    together(torch.get_num_threads(), lambda member: _products(matrix, row, into, place, step))
    if bias is not None:
        out += bias
    return out.to(x.dtype)
