"""The passes of a compiled decode step that attend: steady zone, retrieved, estimated, merge."""

from __future__ import annotations

import numpy as np
from numba import carray

from .jit_numba import exp, jit, pointer, to_float, touch
from .wave_rows_numba import add_rows, dots, load_at, load_stored
from .wave_words_numba import (
    BLOCK,
    BLOCKS,
    BYTES,
    CLUSTER,
    COARSE,
    COARSE_MASS,
    COARSE_SIZE,
    COARSE_ZONE,
    DIM,
    DROPPED,
    ESTIMATED,
    EXACT,
    FINE,
    FINE_MASS,
    FOUND,
    GROUP,
    GROUPS,
    LINE,
    LSE,
    LSE_EXACT,
    MEAN,
    NONE,
    ONE,
    OUT,
    PART_AT,
    PART_BASE,
    PART_BYTES,
    PART_CENTRE,
    PART_EXACT,
    PART_MASS,
    PART_ROWS,
    PART_SCORES,
    PART_SUM,
    PART_TOP,
    PARTS,
    PLACE,
    Q_TURNED,
    RETRIEVED,
    RULES,
    S_CLUSTERS,
    S_GROUPS,
    S_GROUPS_BEFORE,
    S_TOKENS,
    SCALED,
    SEEN_SUMS,
    SEEN_VALUES,
    SEGMENT,
    SEGMENTS,
    SIZE,
    STEADY_K,
    STEADY_STRIDE,
    STEADY_TOKENS,
    STEADY_V,
    TABLE,
    TILE,
    TOKENS,
    TWO_LEVEL,
    ZONE,
    Q,
    Z,
    f4,
    f8,
    i4,
    i8,
    is_int4,
    is_plain,
    row_bytes,
    rows_of,
    runs_of,
    scale_bytes,
    scales_of,
)


@jit()
def _score_tokens(q, first, at, base, n, scores, rows, stored):
    """scores[g, t] of n <= TILE tokens: keys at at[0], their scales at at[2].

    Of coded keys base[g, t] is the score of the t-th one's centre.
    """
    count = len(scores)
    for t in range(0, n, BLOCK):
        load_stored(at[0], at[2], t, n, rows, stored)
        dots(q, first, count, rows, scores, t, BLOCK)
    if not is_plain(stored):
        for g in range(count):
            for t in range(n):
                scores[g, t] += base[g, t]


@jit()
def _raise_top(highest, g, top, mass, total):
    """top[g] becomes `highest` if that is more; mass[g] and total[g] are relative to e^top[g]."""
    if highest > top[g]:
        shrink = exp(top[g] - highest)
        mass[g] *= shrink
        for d in range(total.shape[1]):
            total[g, d] *= shrink
        top[g] = highest


@jit()
def _highest(scores, n):
    highest = np.float32(-np.inf)
    for t in range(n):
        highest = max(highest, scores[t])
    return highest


@jit()
def _add_tokens(q, first, at, base, n, top, mass, total, scores, rows, threshold, scales, stored):
    """Attends n <= TILE tokens exactly: see `_score_tokens`; values are at at[1].

    A value's scales lie `scales` bytes after its key's. total[g] and mass[g] are relative to
    e^top[g]. Returns the number of value rows read.
    """
    count, read = len(top), 0
    if n == 0:
        return read
    _score_tokens(q, first, at, base, n, scores, rows, stored)
    for t in range(n):
        at[2, t] += scales
    for g in range(count):
        added = np.float32(0.0)
        _raise_top(_highest(scores[g], n), g, top, mass, total)
        for t in range(n, TILE):
            scores[g, t] = np.float32(-np.inf)
        for t in range(TILE):
            scores[g, t] = exp(scores[g, t] - top[g])
        for t in range(TILE):
            added += scores[g, t]
        mass[g] += added
    for t in range(0, n, BLOCK):
        heaviest = np.float32(0.0)
        for g in range(count):
            for i in range(BLOCK):
                heaviest = max(heaviest, scores[g, t + i])
        if heaviest > threshold:
            read += min(BLOCK, n - t)
            load_stored(at[1], at[2], t, n, rows, stored)
            add_rows(scores, t, rows, total)
    return read


@jit()
def _weigh(shares, first, n, zones, zone, shrink, mass, weights, listed, threshold):
    """Adds the masses of entries first ... first + n - 1 (n <= TILE) that are in `zone`.

    The k-th of those that weigh more than `threshold` is listed[k] after `first` and has the
    weights weights[:, k]; returns how many there are.
    """
    heaviest, heavy = np.zeros(TILE, np.float32), 0
    for i in range(n):
        heaviest[i] = np.float32(1.0) if zones[first + i] == zone else np.float32(0.0)
    for g in range(len(mass)):
        added = np.float32(0.0)
        for i in range(n):
            weights[g, i] = shares[g, first + i] * shrink[g] * heaviest[i]
        for i in range(n):
            added += weights[g, i]
        mass[g] += added
    heaviest[:] = np.float32(0.0)
    for g in range(len(mass)):
        for i in range(n):
            heaviest[i] = max(heaviest[i], weights[g, i])
    for i in range(n):
        if heaviest[i] > threshold:
            listed[heavy] = i
            for g in range(len(mass)):
                weights[g, heavy] = weights[g, i]
            heavy += 1
    return heavy


@jit()
def _add_sums(at, factors, n, weights, rows, total, kind):
    """total[g] += weights[g, i] * factors[i] * the value sum at at[i], i < n."""
    for i in range(n):
        for byte in range(0, rows.shape[1] * kind.itemsize, LINE):
            touch(at[i] + byte)
        for g in range(len(weights)):
            weights[g, i] *= factors[i]
    for i in range(n, min(TILE, n + BLOCK)):
        weights[:, i] = np.float32(0.0)
    for i in range(0, n, BLOCK):
        load_at(at, i, n, rows, kind)
        add_rows(weights, i, rows, total)


@jit()
def _score_centre(w, h, s, c, kind, centre, shared):
    """shared[g] = q_g . the centre of cluster c of segment s."""
    table, q, dim, factor = i8(w, TABLE), f4(w, Q), w[DIM], np.float32(1.0)
    held = table[s, S_CLUSTERS]
    mean = carray(pointer(table[s, MEAN] + h * dim * 4), dim, np.float32)
    row = rows_of(w, h, table[s, FINE], held, kind)[c]
    if w[SCALED]:
        factor = to_float(scales_of(w, h, table[s, FINE + 2], held)[c, 0])
    for d in range(dim):
        centre[d] = mean[d] + factor * to_float(row[d])
    for g in range(w[GROUP]):
        total = np.float32(0.0)
        for d in range(dim):
            total += q[h * w[GROUP] + g, d] * centre[d]
        shared[g] = total


@jit()
def _place_of(w, h, candidate, stored):
    """Where a retrieved candidate's block lies, and its number of tokens."""
    s, c = i4(w, SEGMENT)[h, candidate], np.int64(i4(w, CLUSTER)[h, candidate])
    table, (starts, _) = i8(w, TABLE), runs_of(w, h, s)
    before = h * table[s, S_TOKENS] + starts[c]
    keys = table[s, BLOCKS] + before * 2 * (row_bytes(w, stored) + scale_bytes(w, stored))
    if w[PLACE + ONE] > 0:
        keys = i8(w, PLACE)[h, candidate]
    return keys, np.int64(starts[c + 1] - starts[c])


@jit()
def _begin_high(w, h, kind, stored, at, base, scores, rows, top, mass, total):
    """Raises `top` to the largest logits in the cluster of highest rank.

    Without it the values of all tokens that are attended before that cluster seem to count.
    """
    best, count = i8(w, FOUND)[h, 6], w[GROUP]
    if best < 0:
        return
    s, c = i4(w, SEGMENT)[h, best], np.int64(i4(w, CLUSTER)[h, best])
    keys, size = _place_of(w, h, best, stored)
    width, scales = row_bytes(w, stored), scale_bytes(w, stored)
    n, shared = min(size, TILE), np.empty(count, np.float32)
    if not is_plain(stored):
        _score_centre(w, h, s, c, kind, np.empty(w[DIM], np.float32), shared)
    for t in range(n):
        at[0, t], at[2, t] = keys + t * width, keys + 2 * (size * width + t * scales)
        base[:, t] = shared
    q = f4(w, Q_TURNED) if is_int4(stored) else f4(w, Q)
    _score_tokens(q, h * count, at, base, n, scores, rows, stored)
    for g in range(count):
        _raise_top(_highest(scores[g], n), g, top, mass, total)


@jit()
def _attend_exactly(w, kind, stored, task):
    """The retrieved tokens of a part of the clusters of one head; returns the rows read.

    Rows are asked for a tile ahead of the one that is worked on.
    """
    h, part, parts, count = task // w[PARTS], task % w[PARTS], w[PARTS], w[GROUP]
    places, clusters, zones = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h], i4(w, ZONE)[h]
    candidates = i8(w, FOUND)[h, 1]
    q = f4(w, Q_TURNED) if is_int4(stored) else f4(w, Q)
    threshold = np.float32(f8(w, RULES)[0, SEEN_VALUES] / max(1, i8(w, TOKENS)[0, h]))
    top, mass = f4(w, PART_TOP)[task], f4(w, PART_MASS)[task]
    rows = f4(w, PART_ROWS)[task * BLOCK : (task + 1) * BLOCK]
    total = f4(w, PART_SUM)[task * count : (task + 1) * count]
    scores = f4(w, PART_SCORES)[task * count : (task + 1) * count]
    at = i8(w, PART_AT)[6 * task : 6 * task + 6].reshape((2, 3, TILE))
    base = f4(w, PART_BASE)[2 * task * count : 2 * (task + 1) * count].reshape((2, count, TILE))
    centre, shared = f4(w, PART_CENTRE)[task], np.empty(count, np.float32)
    width, scales = row_bytes(w, stored), scale_bytes(w, stored)
    _begin_high(w, h, kind, stored, at[0], base[0], scores, rows, top, mass, total)
    # Of sharp attention few values count.
    read, n, tiles, sharp = np.int64(0), 0, 0, i8(w, FOUND)[h, 5] != 0
    for i in range(part, candidates, parts):
        if zones[i] != RETRIEVED:
            continue
        s, c = places[i], np.int64(clusters[i])
        keys, size = _place_of(w, h, i, stored)
        read += size
        if not is_plain(stored):
            _score_centre(w, h, s, c, kind, centre, shared)
        for t in range(size):
            key, value = keys + t * width, keys + (size + t) * width
            for line in range(0, width, LINE):
                touch(key + line)
                if not sharp:
                    touch(value + line)
            at[tiles % 2, 0, n], at[tiles % 2, 1, n] = key, value
            if not is_plain(stored):
                at[tiles % 2, 2, n] = keys + 2 * (size * width + t * scales)
                touch(at[tiles % 2, 2, n])
                base[tiles % 2, :, n] = shared
            n += 1
            if n == TILE:
                if tiles > 0:
                    read += _add_tokens(
                        q,
                        h * count,
                        at[(tiles + 1) % 2],
                        base[(tiles + 1) % 2],
                        TILE,
                        top,
                        mass,
                        total,
                        scores,
                        rows,
                        threshold,
                        scales,
                        stored,
                    )
                tiles += 1
                n = 0
    for tile in range(max(0, tiles - 1), tiles + 1):
        read += _add_tokens(
            q,
            h * count,
            at[tile % 2],
            base[tile % 2],
            TILE if tile < tiles else n,
            top,
            mass,
            total,
            scores,
            rows,
            threshold,
            scales,
            stored,
        )
    return read


@jit()
def attend_steady(w, kept, task):
    """Part of pass 1: a part of the steady zone of one head begins the sums of that part."""
    h, part, parts, count = task // w[PARTS], task % w[PARTS], w[PARTS], w[GROUP]
    top, mass = f4(w, PART_TOP)[task], f4(w, PART_MASS)[task]
    rows = f4(w, PART_ROWS)[task * BLOCK : (task + 1) * BLOCK]
    total = f4(w, PART_SUM)[task * count : (task + 1) * count]
    scores = f4(w, PART_SCORES)[task * count : (task + 1) * count]
    at = i8(w, PART_AT)[6 * task : 6 * task + 3]
    top[:], mass[:], total[:] = np.float32(-np.inf), np.float32(0.0), np.float32(0.0)
    width, none = w[DIM] * kept.itemsize, np.float32(0.0)
    first, stop = w[STEADY_TOKENS] * part // parts, w[STEADY_TOKENS] * (part + 1) // parts
    for t in range(first, stop, TILE):
        n = min(TILE, stop - t)
        for i in range(n):
            place = h * w[STEADY_STRIDE] + (t + i) * width
            at[0, i], at[1, i] = w[STEADY_K] + place, w[STEADY_V] + place
        _add_tokens(
            f4(w, Q), h * count, at, scores, n, top, mass, total, scores, rows, none, NONE, kept
        )


@jit()
def attend(w, kind, stored, task):
    """Pass 5: exact and estimated attention of a part of the clusters of one head."""
    h, part, parts, count = task // w[PARTS], task % w[PARTS], w[PARTS], w[GROUP]
    table, found, one = i8(w, TABLE), i8(w, FOUND)[h], np.float32(1.0)
    places, clusters = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h]
    sizes, zones, z = i4(w, SIZE)[h], i4(w, ZONE)[h], f4(w, Z)[h]
    threshold = np.float32(f8(w, RULES)[0, SEEN_SUMS] / max(1, found[3]))
    top, mass = f4(w, PART_TOP)[task], f4(w, PART_MASS)[task]
    rows = f4(w, PART_ROWS)[task * BLOCK : (task + 1) * BLOCK]
    total = f4(w, PART_SUM)[task * count : (task + 1) * count]
    weights = f4(w, PART_SCORES)[task * count : (task + 1) * count]
    rows_read = _attend_exactly(w, kind, stored, task)
    line = w[DIM] * kind.itemsize
    shrink = np.empty(count, np.float32)
    for g in range(count):
        if z[g] > top[g]:
            less = exp(top[g] - z[g])
            mass[g] *= less
            for d in range(total.shape[1]):
                total[g, d] *= less
            top[g] = z[g]
        shrink[g] = exp(z[g] - top[g])
    f4(w, PART_EXACT)[task, :] = mass
    sums_read, at, factors = np.int64(0), i8(w, PART_AT)[6 * task], np.empty(TILE, np.float32)
    listed, shares = np.empty(TILE, np.int64), f4(w, FINE_MASS)[h * count : (h + 1) * count]
    start, stop = found[1] * part // parts, found[1] * (part + 1) // parts
    for first in range(start, stop, TILE):
        n = min(TILE, stop - first)
        n = _weigh(shares, first, n, zones, ESTIMATED, shrink, mass, weights, listed, threshold)
        for i in range(n):
            entry = first + listed[i]
            s, c = places[entry], np.int64(clusters[entry])
            held = table[s, S_CLUSTERS]
            at[i] = table[s, FINE + 1] + (h * held + c) * line
            factors[i] = one / np.float32(sizes[entry])
            if w[SCALED]:
                factors[i] *= to_float(scales_of(w, h, table[s, FINE + 2], held)[c, 1])
        _add_sums(at, factors, n, weights, rows, total, kind)
        sums_read += n
    if w[TWO_LEVEL]:
        shares = f4(w, COARSE_MASS)[h * count : (h + 1) * count]
        zones, sizes = i4(w, COARSE_ZONE)[h], i4(w, COARSE_SIZE)[h]
        for s in range(w[SEGMENTS] * part // parts, w[SEGMENTS] * (part + 1) // parts):
            groups, before = table[s, S_GROUPS], table[s, S_GROUPS_BEFORE]
            scales = scales_of(w, h, table[s, COARSE + 2], groups)
            for m in range(0, groups, TILE):
                n, first = min(TILE, groups - m), before + m
                n = _weigh(
                    shares, first, n, zones, DROPPED, shrink, mass, weights, listed, threshold
                )
                for i in range(n):
                    place = m + listed[i]
                    at[i] = table[s, COARSE + 1] + (h * groups + place) * line
                    factors[i] = one / np.float32(sizes[before + place])
                    if w[SCALED]:
                        factors[i] *= to_float(scales[place, 1])
                _add_sums(at, factors, n, weights, rows, total, kind)
                sums_read += n
    width = row_bytes(w, stored) + scale_bytes(w, stored)
    i8(w, PART_BYTES)[0, task] = rows_read * width + sums_read * w[DIM] * kind.itemsize


@jit(entry=True)
def merge_parts(w, kind, stored, kept, start, stop, stride):
    """Pass 6: the parts together, and the bytes read."""
    count, parts, z = w[GROUP], w[PARTS], f4(w, Z)
    tops, masses, exacts = f4(w, PART_TOP), f4(w, PART_MASS), f4(w, PART_EXACT)
    sums, outs = f4(w, PART_SUM), f4(w, OUT)
    shares, lses, all_lses = f4(w, EXACT)[0], f4(w, LSE_EXACT)[0], f4(w, LSE)[0]
    found, part_bytes = i8(w, FOUND), i8(w, PART_BYTES)[0]
    for h in range(start, stop, stride):
        read = np.int64(0)
        scored = found[h, 1] + (w[GROUPS] if w[TWO_LEVEL] else 0)
        read += scored * (w[DIM] * kind.itemsize + (10 if w[SCALED] else 6))
        for task in range(h * parts, (h + 1) * parts):
            read += part_bytes[task]
        for g in range(count):
            at = h * count + g
            out = outs[at]
            top = z[h, g]
            for task in range(h * parts, (h + 1) * parts):
                top = max(top, tops[task, g])
            total, exact = np.float32(0.0), np.float32(0.0)
            for d in range(len(out)):
                out[d] = np.float32(0.0)
            for task in range(h * parts, (h + 1) * parts):
                weight = exp(tops[task, g] - top)
                total += weight * masses[task, g]
                exact += weight * exacts[task, g]
                for d in range(len(out)):
                    out[d] += weight * sums[task * count + g, d]
            for d in range(len(out)):
                out[d] /= total
            shares[at] = exact / total
            lses[at] = top + np.log(exact)
            all_lses[at] = top + np.log(total)
        i8(w, BYTES)[0, h] = read
