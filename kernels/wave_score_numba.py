"""The scoring passes of a compiled decode step: log masses of clusters and groups."""

from __future__ import annotations

import numpy as np
from numba import carray

from .jit_numba import jit, pointer, to_float, touch
from .wave_words_numba import (
    BLOCK,
    CLUSTER,
    COARSE,
    COARSE_MASS,
    COARSE_SIZE,
    COARSE_ZONE,
    DIM,
    DROPPED,
    FINE,
    FINE_MASS,
    FOUND,
    GROUP,
    LINE,
    LOGS,
    MEAN,
    NONE,
    NORMS,
    PARTS,
    PROGRESS,
    Q_AT,
    Q_CODE,
    RULES,
    S_CLUSTERS,
    S_GROUPS,
    S_GROUPS_BEFORE,
    S_SINGLES,
    S_SINGLES_BEFORE,
    SCALE,
    SCALED,
    SECOND_ORDER,
    SEGMENT,
    SEGMENTS,
    SINGLE_MASS,
    SIZE,
    TABLE,
    TWO_LEVEL,
    Q,
    f4,
    f8,
    i4,
    i8,
    rows_of,
    runs_of,
    scales_of,
)


@jit()
def _load(source, first, stop, rows):
    """rows[i] = source[first + i] as float32 for BLOCK rows; 0 from `stop` on."""
    for i in range(BLOCK):
        if first + i < stop:
            for d in range(rows.shape[1]):
                rows[i, d] = to_float(source[first + i, d])
        else:
            for d in range(rows.shape[1]):
                rows[i, d] = np.float32(0.0)


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


@jit()
def _bases(w, h, s, base):
    """base[g] = q_g . mean key of segment s."""
    at, q = i8(w, TABLE)[s, MEAN] + h * w[DIM] * 4, f4(w, Q)
    mean = carray(pointer(at), w[DIM], np.float32)
    for g in range(w[GROUP]):
        total = np.float32(0.0)
        for d in range(w[DIM]):
            total += q[h * w[GROUP] + g, d] * mean[d]
        base[g] = total


@jit()
def _products(w, h, s, level, start, stop, out, at, factors, variances, rows, kind):
    """Queries times centroids of clusters (or groups) start ... stop of segment s: out[g, at ...].

    Also what `finish` needs of each, from factors[0] and variances[0] on.
    """
    table, q = i8(w, TABLE), f4(w, Q)
    held = table[s, S_GROUPS] if level == COARSE else table[s, S_CLUSTERS]
    centroids = rows_of(w, h, table[s, level], held, kind)
    scales = scales_of(w, h, table[s, level + 2], held)
    spreads = carray(pointer(table[s, level + 3] + h * held * 2), held, np.uint16)
    for c in range(start, stop, BLOCK):
        _load(centroids, c, stop, rows)
        dots(q, h * w[GROUP], w[GROUP], rows, out, at + c - start, stop - c)
    n = stop - start
    factors[:n], variances[:n] = np.float32(1.0), np.float32(0.0)
    if w[SCALED]:
        for c in range(n):
            factors[c] = to_float(scales[start + c, 0])
    if w[SECOND_ORDER]:
        for c in range(n):
            variances[c] = to_float(spreads[start + c])


@jit()
def _log_masses(w, h, out, first, stop, factors, variances, logs, base):
    """Products become log masses, out[g, first : stop]; `logs` are the logs of the sizes."""
    norms, count = f4(w, NORMS)[0], w[GROUP]
    for g in range(count):
        finish(out[g, first:stop], factors, variances, logs, base[g], norms[h * count + g])


@jit()
def finish(scores, factors, variances, logs, shift, norm):
    """Unscaled products become log masses: `log_mass` of the reference."""
    for c in range(len(scores)):
        variance, log_size = norm * variances[c], logs[c]
        room = max(log_size, np.float32(0.0))
        frozen = np.sqrt(np.float32(2.0) * variance * room) - room
        half = variance * np.float32(0.5)
        gain = half if half <= room else frozen
        scores[c] = scores[c] * factors[c] + shift + log_size + gain


@jit()
def score_first(w, kind, task):
    """Pass 1: the groups and singles of one segment for one head."""
    h, s = task // w[SEGMENTS], task % w[SEGMENTS]
    count, rows = w[GROUP], np.empty((BLOCK, w[DIM]), np.float32)
    table, logs_of = i8(w, TABLE), f4(w, LOGS)[0]
    clusters, groups, singles = table[s, S_CLUSTERS], table[s, S_GROUPS], table[s, S_SINGLES]
    base, n = np.empty(count, np.float32), max(groups, singles)
    logs, factors, variances = (
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
    )
    _bases(w, h, s, base)
    if w[TWO_LEVEL]:
        starts, offsets = runs_of(w, h, s)
        sizes, zones = i4(w, COARSE_SIZE)[h], i4(w, COARSE_ZONE)[h]
        before = table[s, S_GROUPS_BEFORE]
        for m in range(groups):
            held = starts[offsets[m + 1]] - starts[offsets[m]]
            sizes[before + m] = held
            zones[before + m] = DROPPED
            logs[m] = logs_of[held]
        masses = f4(w, COARSE_MASS)[h * count : (h + 1) * count]
        _products(w, h, s, COARSE, NONE, groups, masses, before, factors, variances, rows, kind)
        _log_masses(w, h, masses, before, before + groups, factors, variances, logs, base)
    logs[:singles] = np.float32(0.0)
    masses = f4(w, SINGLE_MASS)[h * count : (h + 1) * count]
    before, first = table[s, S_SINGLES_BEFORE], clusters - singles
    _products(w, h, s, FINE, first, clusters, masses, before, factors, variances, rows, kind)
    _log_masses(w, h, masses, before, before + singles, factors, variances, logs, base)


@jit()
def prepare(w):
    """Before all passes: queries times scale as float32, and the squares of their lengths."""
    q, norms, scale = f4(w, Q), f4(w, NORMS)[0], np.float32(f8(w, RULES)[0, SCALE])
    i8(w, PROGRESS)[:] = 0
    n = q.shape[0] * q.shape[1]
    flat, at = q.reshape(n), pointer(w[Q_AT])
    if w[Q_CODE] == 0:
        _scale(carray(at, n, np.float32), scale, flat)
    elif w[Q_CODE] == 1:
        _scale(carray(at, n, np.uint16), scale, flat)
    else:
        _scale(carray(at, n, np.int16), scale, flat)
    for h in range(len(q)):
        norms[h] = np.float32(0.0)
        for d in range(q.shape[1]):
            norms[h] += q[h, d] * q[h, d]


@jit()
def _scale(source, scale, out):
    for i in range(len(out)):
        out[i] = to_float(source[i]) * scale


@jit()
def score_found(w, kind, task):
    """Pass 3: log masses of a part of the grouped candidates; neighbours are scored together."""
    h, part, count = task // w[PARTS], task % w[PARTS], w[GROUP]
    places, clusters, sizes = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h], i4(w, SIZE)[h]
    n, logs_of, table = i8(w, FOUND)[h, 0], f4(w, LOGS)[0], i8(w, TABLE)
    line = w[DIM] * kind.itemsize
    at, end = n * part // w[PARTS], n * (part + 1) // w[PARTS]
    base, rows, n = np.empty(count, np.float32), np.empty((BLOCK, w[DIM]), np.float32), end - at
    logs, factors, variances = (
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
    )
    masses = f4(w, FINE_MASS)[h * count : (h + 1) * count]
    while at < end:
        s, first = np.int64(places[at]), at
        while at < end and places[at] == s:
            c, run = np.int64(clusters[at]), 1
            while at + run < end and places[at + run] == s and clusters[at + run] == c + run:
                run += 1
            if at + run < end:
                next_s, next_c = places[at + run], np.int64(clusters[at + run])
                place = (h * table[next_s, S_CLUSTERS] + next_c) * line
                for byte in range(0, run * line, LINE):
                    touch(table[next_s, FINE] + place + byte)
            for i in range(at - first, at - first + run):
                logs[i] = logs_of[sizes[first + i]]
            _products(
                w,
                h,
                s,
                FINE,
                c,
                c + run,
                masses,
                at,
                factors[at - first :],
                variances[at - first :],
                rows,
                kind,
            )
            at += run
        _bases(w, h, s, base)
        _log_masses(w, h, masses, first, at, factors, variances, logs, base)
