"""Exact attention of one query per head, compiled for CPUs: keys and values are read once.

Threads take KV heads that others have not begun, as in linear_numba.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .jit_numba import add_at, exp, jit, pointer, put, to_float
from .team import together_compiled
from .tiles_numba import add_rows, dots, highest

TILE = 64
"""Keys whose scores are held at once."""
ALONE = 1 << 17
"""Numbers in the keys up to which the caller works alone: it ends before helpers have begun."""

CODES = {torch.bfloat16: 0, torch.float16: 1}
QUERIES, KEYS, VALUES, OUT, LSE, SCALE, HEADS, GROUP, DIM, STRIDE, COUNT, CODE, BEGUN, LENGTH = (
    range(14)
)
"""Words: where everything lies, a float64, KV heads, queries of each, their length, numbers from
one head's keys to the next's, keys, a dtype's code, heads begun; how many words."""


def attend(words, member):
    """One KV head after another."""
    w = carray(pointer(words), LENGTH, np.int64)
    h = add_at(words + 8 * BEGUN, 1)
    while h < w[HEADS]:
        shape = w[HEADS] * w[GROUP], w[DIM]
        if w[CODE] == 0:
            _head(w, words, h, carray(pointer(w[QUERIES]), shape, np.uint16))
        else:
            _head(w, words, h, carray(pointer(w[QUERIES]), shape, np.int16))
        h = add_at(words + 8 * BEGUN, 1)


@jit(allocates=True)
def _head(w, words, h, queries):
    count, dim, first = w[GROUP], w[DIM], h * w[GROUP]
    keys, apart = w[KEYS] + 2 * h * w[STRIDE], w[VALUES] - w[KEYS]
    out = carray(pointer(w[OUT]), queries.shape, queries.dtype)
    lse = carray(pointer(w[LSE]), len(queries), np.float32)
    scale = np.float32(carray(pointer(words + 8 * SCALE), 1, np.float64)[0])
    q, at, which = np.empty((count, dim), np.float32), np.empty(TILE, np.int64), np.arange(TILE)
    for g in range(count):
        for d in range(dim):
            q[g, d] = scale * to_float(queries[first + g, d])
    scores, total = np.empty((count, TILE), np.float32), np.zeros((count, dim), np.float32)
    top, mass = np.full(count, np.float32(-np.inf)), np.zeros(count, np.float32)
    for start in range(0, w[COUNT], TILE):
        n = min(TILE, w[COUNT] - start)
        for t in range(n):
            at[t] = keys + 2 * (start + t) * dim
        dots(q, 0, count, at, n, scores, 0, queries)
        for g in range(count):
            _weigh(scores[g], n, g, top, mass, total[g])
        for t in range(n):
            at[t] += apart
        add_rows(scores, which, at, n, total, queries)
    for g in range(count):
        lse[first + g] = top[g] + np.log(mass[g])
        for d in range(dim):
            put(out[first + g], d, total[g, d] / mass[g])


@jit()
def _weigh(scores, n, g, top, mass, total):
    """Scores of n keys become weights relative to e^top[g], as mass[g] and total then are."""
    most = max(top[g], highest(scores[:n]))
    shrink, added = exp(top[g] - most), np.float32(0.0)
    for t in range(n, TILE):
        scores[t] = np.float32(-np.inf)
    for t in range(TILE):
        scores[t] = exp(scores[t] - most)
        added += scores[t]
    for d in range(len(total)):
        total[d] *= shrink
    top[g], mass[g] = most, mass[g] * shrink + added


def one_query_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """`full_attention` of q [Hq, 1, D] to k, v [Hkv, N, D], N >= 1, whose tokens lie one after
    another: all in bfloat16 or all in float16."""
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2])
    heads, keys, dim = k.shape
    places = (part.data_ptr() for part in (q, k, v, out, lse))
    shape = heads, q.shape[0] // heads, dim, k.stride(0), keys, CODES[q.dtype], 0
    words = np.array([*places, 0, *shape], np.int64)
    words[SCALE : SCALE + 1].view(np.float64)[0] = scale
    members = 1 if math.prod(k.shape) <= ALONE else torch.get_num_threads()
    together_compiled(members, attend, words.ctypes.data)
    return out, lse
