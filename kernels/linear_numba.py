"""One row times matrices in 16 bits, compiled for CPUs: they are read once, where they lie.

Threads, as many as PyTorch's, take pieces of some rows that others have not begun: a slow processor
does less. Pieces do not depend on how many threads there are, so neither does a result. Products
of one row with several matrices are one piece of work: threads need not meet between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .jit_numba import add_at, jit, pointer, to_float
from .team import together_compiled

PIECE = 1 << 17
"""Numbers of the matrix that a thread takes at once."""

CODES = {torch.bfloat16: 0, torch.float16: 1}
"""Of the dtypes, as the words have them."""
X, COLUMNS, CODE, STEP, BEGUN, MATRICES, HEAD = range(7)
"""Words: where x lies as float32, its length, a code, rows of a piece, pieces begun, how many
matrices follow, where they do."""
WEIGHT, ROWS, OUT, EACH = range(4)
"""Words of a matrix: where it lies, how many rows, where their products go as float32; how many."""


def products(words, member):
    """out[i] = weight[i] . x for all rows of all matrices, a piece at a time."""
    count = carray(pointer(words), HEAD, np.int64)[MATRICES]
    w = carray(pointer(words), HEAD + EACH * count, np.int64)
    x = carray(pointer(w[X]), w[COLUMNS], np.float32)
    at, before, piece = HEAD, 0, add_at(words + 8 * BEGUN, 1)
    while at < len(w):
        pieces = (w[at + ROWS] + w[STEP] - 1) // w[STEP]
        if piece >= before + pieces:
            before, at = before + pieces, at + EACH
            continue
        first = (piece - before) * w[STEP]
        rows = min(w[STEP], w[at + ROWS] - first)
        out = carray(pointer(w[at + OUT] + 4 * first), rows, np.float32)
        place, shape = pointer(w[at + WEIGHT] + 2 * first * len(x)), (rows, len(x))
        if w[CODE] == 0:
            _rows(carray(place, shape, np.uint16), x, out)
        else:
            _rows(carray(place, shape, np.int16), x, out)
        piece = add_at(words + 8 * BEGUN, 1)


@jit()
def _rows(weight, x, out):
    """Two rows that lie apart together: processors read two runs of memory ahead faster than one."""
    rows, columns = weight.shape
    half = rows // 2
    for i in range(half):
        one, other = weight[i], weight[i + half]
        a = b = np.float32(0.0)
        for k in range(columns):
            a += to_float(one[k]) * x[k]
            b += to_float(other[k]) * x[k]
        out[i], out[i + half] = a, b
    for i in range(2 * half, rows):
        row, a = weight[i], np.float32(0.0)
        for k in range(columns):
            a += to_float(row[k]) * x[k]
        out[i] = a


def linears_numba(x: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """`linears` for x [1, K] and contiguous weights [N, K], all in bfloat16 or all in float16."""
    sizes = [weight.shape[0] for weight, _ in matrices]
    row, out = x.to(torch.float32).contiguous(), torch.empty(1, sum(sizes))
    columns, into = x.shape[1], out.data_ptr()
    step = max(2, PIECE // max(1, columns))
    words = [row.data_ptr(), columns, CODES[x.dtype], step, 0, len(matrices)]
    for (weight, _), size in zip(matrices, sizes, strict=True):
        words += weight.data_ptr(), size, into
        into += 4 * size
    given = np.array(words, np.int64)
    together_compiled(torch.get_num_threads(), products, given.ctypes.data)
    parts = out.split(sizes, dim=1)
    for part, (_, bias) in zip(parts, matrices, strict=True):
        if bias is not None:
            part += bias
    return list(out.to(x.dtype).split(sizes, dim=1))
