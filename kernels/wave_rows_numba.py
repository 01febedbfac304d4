"""Products with rows as a store holds them: coded ones are decoded on the way."""

from __future__ import annotations

import numpy as np
from numba import carray, types
from numba.extending import overload

from .codecs import CUBIC, LINEAR
from .jit_numba import jit, pointer, to_float
from .tiles_numba import add_rows, address, dots
from .wave_words_numba import group_dims, is_int4


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


def stored_dots(q, first, count, at, scales, begin, n, out, rows, lines, stored):
    """out[g, t] = q[first + g] . the key at address at[t], its scales at scales[t].

    For t from `begin` on, n <= TILE of them. A coded key is the difference to its centre, in int4
    rotated. `rows` float32 [TILE, D] and `lines` [TILE] are room to work in.
    """
    raise NotImplementedError


@overload(stored_dots)
def _stored_dots(q, first, count, at, scales, begin, n, out, rows, lines, stored):
    if stored.dtype == types.uint8:
        return _dots_int4
    if stored.dtype == types.int8:
        return _dots_int8
    return _dots_plain


def _dots_plain(q, first, count, at, scales, begin, n, out, rows, lines, stored):
    dots(q, first, count, at[begin:], n, out, begin, stored)


def _dots_int8(q, first, count, at, scales, begin, n, out, rows, lines, stored):
    dots(q, first, count, at[begin:], n, out, begin, stored)
    _scale_columns(out, count, scales, begin, n, rows[0])


def _dots_int4(q, first, count, at, scales, begin, n, out, rows, lines, stored):
    _unpack(at[begin:], scales[begin:], n, rows, lines)
    dots(q, first, count, lines, n, out, begin, rows)


def add_stored(weights, which, at, scales, n, total, rows, lines, stored):
    """total[g] += the sum over i < n <= TILE of weights[g, which[i]] * the value at address at[i].

    Its scales are at scales[i]; weights may be changed; `rows` and `lines` as for `stored_dots`.
    """
    raise NotImplementedError


@overload(add_stored)
def _add_stored(weights, which, at, scales, n, total, rows, lines, stored):
    if stored.dtype == types.uint8:
        return _add_int4
    if stored.dtype == types.int8:
        return _add_int8
    return _add_plain


def _add_plain(weights, which, at, scales, n, total, rows, lines, stored):
    add_rows(weights, which, at, n, total, stored)


def _add_int8(weights, which, at, scales, n, total, rows, lines, stored):
    _scale_listed(weights, which, scales, n)
    add_rows(weights, which, at, n, total, stored)


def _add_int4(weights, which, at, scales, n, total, rows, lines, stored):
    _unpack(at, scales, n, rows, lines)
    add_rows(weights, which, lines, n, total, rows)


@jit()
def _scale_at(address):
    return to_float(carray(pointer(address), 1, np.uint16)[0])


@jit()
def _scale_columns(out, count, scales, begin, n, factors):
    """out[g, t] *= the scale at scales[t], for t from `begin` on."""
    for t in range(n):
        factors[t] = _scale_at(scales[begin + t])
    for g in range(count):
        for t in range(n):
            out[g, begin + t] *= factors[t]


@jit()
def _scale_listed(weights, which, scales, n):
    for i in range(n):
        scale = _scale_at(scales[i])
        for g in range(len(weights)):
            weights[g, which[i]] *= scale


@jit()
def _unpack(at, scales, n, rows, lines):
    """rows[i] = what is coded in int4 at at[i]; lines[i] is its address."""
    for i in range(n):
        _load_int4(at[i], scales[i], rows[i])
        lines[i] = address(rows) + i * rows.shape[1] * 4
