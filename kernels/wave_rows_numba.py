"""Rows of the index and the store as float32, four at a time, and what is multiplied with them."""

from __future__ import annotations

import numpy as np
from numba import carray

from .codecs import CUBIC, LINEAR
from .jit_numba import jit, pointer, to_float
from .wave_words_numba import BLOCK, group_dims, is_int4, is_plain


@jit()
def load(source, first, stop, rows):
    """rows[i] = source[first + i] as float32 for BLOCK rows; 0 from `stop` on."""
    for i in range(BLOCK):
        if first + i < stop:
            for d in range(rows.shape[1]):
                rows[i, d] = to_float(source[first + i, d])
        else:
            for d in range(rows.shape[1]):
                rows[i, d] = np.float32(0.0)


@jit()
def load_at(addresses, first, stop, rows, stored):
    """rows[i] = the row at addresses[first + i] as float32 for BLOCK rows; 0 from `stop` on."""
    dim = rows.shape[1]
    for i in range(BLOCK):
        if first + i < stop:
            row = carray(pointer(addresses[first + i]), dim, stored.dtype)
            for d in range(dim):
                rows[i, d] = to_float(row[d])
        else:
            for d in range(dim):
                rows[i, d] = np.float32(0.0)


@jit()
def load_stored(addresses, scales, first, stop, rows, stored):
    """rows[i] = the stored key or value at addresses[first + i]; 0 from `stop` on.

    Of a coded key that is the difference to its centre, in int4 rotated. Scales are at the address
    scales[first + i].
    """
    if is_plain(stored):
        load_at(addresses, first, stop, rows, stored)
        return
    for i in range(BLOCK):
        if first + i >= stop:
            for d in range(rows.shape[1]):
                rows[i, d] = np.float32(0.0)
        else:
            load_coded(addresses[first + i], scales[first + i], rows[i], stored)


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


@jit()
def dots(q, first, count, rows, out, at, n):
    """out[g, at + i] = q[first + g] . rows[i] for n <= BLOCK rows.

    Two queries x and y at a time: that many sums stay in registers, a row is loaded once for both.
    """
    for g in range(0, count, 2):
        other = min(g + 1, count - 1)
        x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = np.float32(0.0)
        for d in range(rows.shape[1]):
            x, y = q[first + g, d], q[first + other, d]
            x0 += x * rows[0, d]
            x1 += x * rows[1, d]
            x2 += x * rows[2, d]
            x3 += x * rows[3, d]
            y0 += y * rows[0, d]
            y1 += y * rows[1, d]
            y2 += y * rows[2, d]
            y3 += y * rows[3, d]
        out[g, at], out[other, at] = x0, y0
        if n > 1:
            out[g, at + 1], out[other, at + 1] = x1, y1
        if n > 2:
            out[g, at + 2], out[other, at + 2] = x2, y2
        if n > 3:
            out[g, at + 3], out[other, at + 3] = x3, y3


@jit()
def add_rows(weights, at, rows, total):
    """total[g] += sum over BLOCK rows of weights[g, at + i] * rows[i]; two queries at a time."""
    count = total.shape[0]
    for g in range(0, count - 1, 2):
        o = g + 1
        x0, x1, x2, x3 = weights[g, at], weights[g, at + 1], weights[g, at + 2], weights[g, at + 3]
        y0, y1, y2, y3 = weights[o, at], weights[o, at + 1], weights[o, at + 2], weights[o, at + 3]
        for d in range(total.shape[1]):
            r0, r1, r2, r3 = rows[0, d], rows[1, d], rows[2, d], rows[3, d]
            total[g, d] += x0 * r0 + x1 * r1 + x2 * r2 + x3 * r3
            total[o, d] += y0 * r0 + y1 * r1 + y2 * r2 + y3 * r3
    if count % 2:
        g = count - 1
        x0, x1, x2, x3 = weights[g, at], weights[g, at + 1], weights[g, at + 2], weights[g, at + 3]
        for d in range(total.shape[1]):
            total[g, d] += x0 * rows[0, d] + x1 * rows[1, d] + x2 * rows[2, d] + x3 * rows[3, d]
