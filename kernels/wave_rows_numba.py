"""Products with rows as a store holds them: coded ones are decoded on the way."""

from __future__ import annotations

import numpy as np
from numba import carray, types

from .codecs import CUBIC, LINEAR
from .jit_numba import chosen, jit, pointer, to_float
from .tiles_numba import WHOLE_LANES, add_rows, address, dots, whole_dots
from .wave_parts_numba import centres_of, factors_of, lines_of, rows_of_part, scores_of, sums_of
from .wave_words_numba import (
    DIM,
    GROUP,
    PARTS,
    Q_STEP,
    Q_TURNED,
    Q_WHOLE,
    Q,
    f4,
    group_dims,
    i2,
    is_int4,
)


@jit()
def load_coded(address, scale_at, row, stored):
    """row = what is coded at an address in int8 or int4, as float32."""
    if is_int4(stored):
        _load_int4(address, scale_at, row)
    else:
        _load_int8(address, scale_at, row)


@jit()
def _load_int8(address, scale_at, row):
    steps = carray(pointer(address), len(row), np.int8)
    scale = to_float(carray(pointer(scale_at), 1, np.uint16)[0])
    for d in range(len(row)):
        row[d] = scale * np.float32(steps[d])


@jit()
def _load_int4(address, scale_at, row):
    size = group_dims(len(row))
    half, count = size // 2, len(row) // size
    scales = carray(pointer(scale_at), count, np.uint16)
    for j in range(count):
        codes = carray(pointer(address + j * half), half, np.uint8)
        scale = to_float(scales[j])
        low, high = row[j * size : j * size + half], row[j * size + half : (j + 1) * size]
        for b in range(half):
            code = np.int32(codes[b])
            x = np.float32(code & np.int32(15)) - np.float32(7.5)
            y = np.float32(code >> np.int32(4)) - np.float32(7.5)
            low[b] = scale * x * (np.float32(LINEAR) + np.float32(CUBIC) * x * x)
            high[b] = scale * y * (np.float32(LINEAR) + np.float32(CUBIC) * y * y)


@jit()
def turn(rows):
    """Rotates rows [n, D] in place: `rotate` of the reference."""
    dim = rows.shape[1]
    size = dim & -dim
    factor = np.float32(1.0) / np.sqrt(np.float32(size))
    for row in rows:
        half = 1
        while half < size:
            for begin in range(0, dim, 2 * half):
                for d in range(begin, begin + half):
                    one, other = row[d], row[d + half]
                    row[d], row[d + half] = one + other, one - other
            half *= 2
        for d in range(dim):
            row[d] *= factor


def asked_dots(w, h, rows, n, out, at, stored):
    """out[g, at + i] = q_g . the row at address rows[i], for the queries q_g of KV head h."""
    raise NotImplementedError


@chosen(asked_dots)
def _asked_dots(w, h, rows, n, out, at, stored):
    if stored.dtype == types.int8 and WHOLE_LANES:
        return _asked_dots_whole
    return _asked_dots_float


def _asked_dots_float(w, h, rows, n, out, at, stored):
    dots(f4(w, Q), h * w[GROUP], w[GROUP], rows, n, out, at, stored)


def _asked_dots_whole(w, h, rows, n, out, at, stored):
    first, count = h * w[GROUP], w[GROUP]
    if w[DIM] % WHOLE_LANES == 0:
        whole_dots(i2(w, Q_WHOLE), f4(w, Q_STEP)[0], first, count, rows, n, out, at)
    else:
        dots(f4(w, Q), first, count, rows, n, out, at, stored)


def stored_dots(w, task, tile, begin, n, stored):
    """PART_SCORES[g, t] = q_g . the key at the t-th address of a tile, n <= TILE from `begin` on.

    A coded key is the difference to its centre, in int8 before its scale, in int4 rotated; logits
    are made of that by `add_centres`.
    """
    raise NotImplementedError


@chosen(stored_dots)
def _stored_dots(w, task, tile, begin, n, stored):
    return _dots_int4 if stored.dtype == types.uint8 else _dots_plain


def _dots_plain(w, task, tile, begin, n, stored):
    keys, _, _, _, _ = lines_of(w, task, tile)
    asked_dots(w, task // w[PARTS], keys[begin:], n, scores_of(w, task), begin, stored)


def _dots_int4(w, task, tile, begin, n, stored):
    keys, _, scales, _, lines = lines_of(w, task, tile)
    rows, count = rows_of_part(w, task), w[GROUP]
    _unpack(keys[begin:], scales[begin:], n, rows, lines)
    first = task // w[PARTS] * count
    dots(f4(w, Q_TURNED), first, count, lines, n, scores_of(w, task), begin, rows)


@jit()
def add_centres(w, task, tile, n, stored):
    """PART_SCORES[g, t] of n coded keys become logits: those of their centres are added.

    What else is in the tile is changed, too.
    """
    _, _, scales, _, _ = lines_of(w, task, tile)
    scores, factors, centres = scores_of(w, task), factors_of(w, task), centres_of(w, task, tile)
    for t in range(n):
        factors[t] = np.float32(1.0) if is_int4(stored) else _scale_at(scales[t])
    for g in range(len(scores)):
        row, beside = scores[g], centres[g]
        for t in range(len(row)):
            row[t] = row[t] * factors[t] + beside[t]


def add_stored(w, task, tile, n, stored):
    """PART_SUM[g] += the sum over i < n of PART_SCORES[g, which[i]] * the i-th value of a tile.

    `which` is the last but one of `lines_of`; weights may be changed.
    """
    raise NotImplementedError


@chosen(add_stored)
def _add_stored(w, task, tile, n, stored):
    if stored.dtype == types.uint8:
        return _add_int4
    if stored.dtype == types.int8:
        return _add_int8
    return _add_plain


def _add_plain(w, task, tile, n, stored):
    _, values, _, which, _ = lines_of(w, task, tile)
    add_rows(scores_of(w, task), which, values, n, sums_of(w, task)[2], stored)


def _add_int8(w, task, tile, n, stored):
    _, values, scales, which, _ = lines_of(w, task, tile)
    weights, factors = scores_of(w, task), factors_of(w, task)
    for i in range(n):
        factors[which[i]] = _scale_at(scales[i])
    multiply_columns(weights, factors)
    add_rows(weights, which, values, n, sums_of(w, task)[2], stored)


def _add_int4(w, task, tile, n, stored):
    _, values, scales, which, lines = lines_of(w, task, tile)
    rows = rows_of_part(w, task)
    _unpack(values, scales, n, rows, lines)
    add_rows(scores_of(w, task), which, lines, n, sums_of(w, task)[2], rows)


@jit()
def multiply_columns(weights, factors):
    """weights[g, t] *= factors[t]."""
    for g in range(len(weights)):
        row = weights[g]
        for t in range(len(row)):
            row[t] *= factors[t]


@jit()
def _scale_at(address):
    return to_float(carray(pointer(address), 1, np.uint16)[0])


@jit()
def _unpack(at, scales, n, rows, lines):
    """rows[i] = what is coded in int4 at at[i]; lines[i] is its address."""
    for i in range(n):
        _load_int4(at[i], scales[i], rows[i])
        lines[i] = address(rows) + i * rows.shape[1] * 4
