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

from .jit_numba import add_at, jit, pointer, put, to_float
from .team import together_compiled

PIECE = 1 << 18
"""Numbers of the matrix that a thread takes at once."""

CODES = {torch.bfloat16: 0, torch.float16: 1}
"""Of the dtypes, as the words have them."""
X, COLUMNS, CODE, STEP, BEGUN, MATRICES, HEAD = range(7)
"""Words: where x lies, its length, its dtype's code, rows of a piece, pieces begun, how many
matrices follow, where they do."""
WEIGHT, BIAS, ROWS, OUT, EACH = range(5)
"""Words of a matrix: where it lies, its bias (0: none), how many rows, where their products go."""


def products(words, member):
    """out[i] = weight[i] . x + bias[i] for all rows of all matrices, a piece at a time."""
    count = carray(pointer(words), HEAD, np.int64)[MATRICES]
    w = carray(pointer(words), HEAD + EACH * count, np.int64)
    at, before, piece = HEAD, 0, add_at(words + 8 * BEGUN, 1)
    while at < len(w):
        pieces = (w[at + ROWS] + w[STEP] - 1) // w[STEP]
        if piece >= before + pieces:
            before, at = before + pieces, at + EACH
            continue
        first = (piece - before) * w[STEP]
        last = min(first + w[STEP], w[at + ROWS])
        if w[CODE] == 0:
            _piece(w, at, first, last, carray(pointer(w[X]), w[COLUMNS], np.uint16))
        else:
            _piece(w, at, first, last, carray(pointer(w[X]), w[COLUMNS], np.int16))
        piece = add_at(words + 8 * BEGUN, 1)


@jit()
def _piece(w, at, first, last, x):
    """Rows first ... last - 1 of the matrix whose words are at `at`.

    Four rows that lie apart together: processors read several runs of memory ahead faster than
    one, and x is read once for all of them.
    """
    rows, columns = w[at + ROWS], len(x)
    weight = carray(pointer(w[at + WEIGHT]), (rows, columns), x.dtype)
    out = carray(pointer(w[at + OUT]), rows, x.dtype)
    bias = carray(pointer(w[at + BIAS]), rows if w[at + BIAS] else 0, x.dtype)
    quarter = (last - first) // 4
    for i in range(first, first + quarter):
        j, k, m = i + quarter, i + 2 * quarter, i + 3 * quarter
        one, two, three, four = weight[i], weight[j], weight[k], weight[m]
        a = b = c = d = np.float32(0.0)
        for n in range(columns):
            y = to_float(x[n])
            a += to_float(one[n]) * y
            b += to_float(two[n]) * y
            c += to_float(three[n]) * y
            d += to_float(four[n]) * y
        _put_sum(out, i, a, bias)
        _put_sum(out, j, b, bias)
        _put_sum(out, k, c, bias)
        _put_sum(out, m, d, bias)
    for i in range(first + 4 * quarter, last):
        row, a = weight[i], np.float32(0.0)
        for n in range(columns):
            a += to_float(row[n]) * to_float(x[n])
        _put_sum(out, i, a, bias)


@jit()
def _put_sum(out, i, value, bias):
    put(out, i, value + to_float(bias[i]) if len(bias) else value)


def linears_numba(x: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """`linears` for x [1, K] and contiguous weights [N, K], all in bfloat16 or all in float16."""
    columns, x = x.shape[1], x.contiguous()
    outs = [x.new_empty((1, weight.shape[0])) for weight, _ in matrices]
    words = [x.data_ptr(), columns, CODES[x.dtype], max(4, PIECE // max(1, columns)), 0, len(outs)]
    for (weight, bias), out in zip(matrices, outs, strict=True):
        at = 0 if bias is None else bias.data_ptr()
        words += weight.data_ptr(), at, out.shape[1], out.data_ptr()
    given = np.array(words, np.int64)
    together_compiled(torch.get_num_threads(), products, given.ctypes.data)
    return outs
