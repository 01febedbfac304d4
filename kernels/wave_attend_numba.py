"""The passes of a compiled decode step that attend: steady zone, retrieved, estimated, merge."""

from __future__ import annotations

import numpy as np
from numba import carray

from .jit_numba import exp, jit, pointer, to_float, touch
from .tiles_numba import add_rows, highest
from .wave_rows_numba import add_stored, stored_dots
from .wave_words_numba import (
    BLOCKS,
    BYTES,
    CLUSTER,
    COARSE,
    COARSE_SHARE,
    COARSE_SIZE,
    COARSE_TOP,
    DIM,
    EXACT,
    FINE,
    FINE_SHARE,
    FINE_TOP,
    FOUND,
    GROUP,
    GROUPS,
    LINE,
    LSE,
    LSE_EXACT,
    MEAN,
    NONE,
    NOTHING,
    ONE,
    OUT,
    PART_AT,
    PART_BASE,
    PART_BYTES,
    PART_CENTRE,
    PART_EXACT,
    PART_LINE,
    PART_MASS,
    PART_ROWS,
    PART_SCORES,
    PART_SHARED,
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
def _sums(w, task):
    """What a part has summed: logarithms the sums are relative to, masses, sums of values."""
    count = w[GROUP]
    total = f4(w, PART_SUM)[task * count : (task + 1) * count]
    return f4(w, PART_TOP)[task], f4(w, PART_MASS)[task], total


@jit()
def _scores(w, task):
    """[G, TILE]: logits, then weights, of a tile."""
    return f4(w, PART_SCORES)[task * w[GROUP] : (task + 1) * w[GROUP]]


@jit()
def _bases(w, task, tile):
    """[G, TILE] of a tile: what is added to the logits of coded keys."""
    first = (2 * task + tile) * w[GROUP]
    return f4(w, PART_BASE)[first : first + w[GROUP]]


@jit()
def _lines(w, task, tile):
    """Of a tile: addresses of keys, values and scales, columns that are listed, room for more."""
    at = i8(w, PART_AT)[5 * (2 * task + tile) : 5 * (2 * task + tile) + 5]
    return at[0], at[1], at[2], at[3], at[4]


@jit()
def _score_tokens(w, q, task, tile, n, stored):
    """PART_SCORES[g, t] of n <= TILE tokens whose addresses `_lines` has.

    Of coded keys PART_BASE[g, t] is the score of the t-th one's centre.
    """
    count, (keys, _, scales, _, lines) = w[GROUP], _lines(w, task, tile)
    scores, rows = _scores(w, task), f4(w, PART_ROWS)[task * TILE : (task + 1) * TILE]
    stored_dots(q, task // w[PARTS] * count, count, keys, scales, n, scores, rows, lines, stored)
    if not is_plain(stored):
        base = _bases(w, task, tile)
        for g in range(count):
            for t in range(n):
                scores[g, t] += base[g, t]


@jit()
def _raise_top(found, g, top, mass, total):
    """top[g] becomes `found` if that is more; mass[g] and total[g] are relative to e^top[g]."""
    if found > top[g]:
        shrink = exp(top[g] - found)
        mass[g] *= shrink
        for d in range(total.shape[1]):
            total[g, d] *= shrink
        top[g] = found


@jit()
def _add_tokens(w, q, task, tile, n, threshold, stored):
    """Attends n <= TILE tokens exactly: see `_score_tokens`.

    Sums and masses of the part are relative to e^top. Returns the number of value rows read.
    """
    if n == 0:
        return NONE
    count, scores, (top, mass, total) = w[GROUP], _scores(w, task), _sums(w, task)
    _score_tokens(w, q, task, tile, n, stored)
    for g in range(count):
        added = np.float32(0.0)
        _raise_top(highest(scores[g, :n]), g, top, mass, total)
        for t in range(n, TILE):
            scores[g, t] = np.float32(-np.inf)
        for t in range(TILE):
            scores[g, t] = exp(scores[g, t] - top[g])
        for t in range(TILE):
            added += scores[g, t]
        mass[g] += added
    _, values, scales, which, lines = _lines(w, task, tile)
    read, later = _list_heavy(w, task, scores, n, threshold, which), scale_bytes(w, stored)
    for i in range(read):
        values[i], scales[i] = values[which[i]], scales[which[i]] + later
    rows = f4(w, PART_ROWS)[task * TILE : (task + 1) * TILE]
    add_stored(scores, which, values, scales, read, total, rows, lines, stored)
    return read


@jit()
def _list_heavy(w, task, weights, n, threshold, which):
    """which[i] is the i-th of n <= TILE columns where a weight is above `threshold`; how many."""
    heaviest, heavy = f4(w, PART_LINE)[2 * task], NONE
    heaviest[:] = np.float32(0.0)
    for g in range(len(weights)):
        for t in range(TILE):
            heaviest[t] = max(heaviest[t], weights[g, t])
    for t in range(n):
        which[heavy] = t
        heavy += np.int64(heaviest[t] > threshold)
    return heavy


@jit()
def _weigh(w, task, shares, first, n, shrink, threshold):
    """Adds the masses of entries first ... first + n - 1 (n <= TILE).

    Their weights are in PART_SCORES; returns how many weigh more than `threshold`, and which
    they are in the last but one of `_lines`.
    """
    weights, (_, mass, _) = _scores(w, task), _sums(w, task)
    for g in range(len(mass)):
        added = np.float32(0.0)
        for i in range(n):
            weights[g, i] = shares[g, first + i] * shrink[g]
        for i in range(n):
            added += weights[g, i]
        weights[g, n:] = np.float32(0.0)
        mass[g] += added
    return _list_heavy(w, task, weights, n, threshold, _lines(w, task, 0)[3])


@jit()
def _add_sums(w, task, n, kind):
    """Adds n value sums: the i-th, of column `which[i]`, is at values[i], see `_lines`.

    The weight of column t is to be multiplied by PART_LINE[2 * task + 1, t].
    """
    weights, factors, (_, _, total) = (
        _scores(w, task),
        f4(w, PART_LINE)[2 * task + 1],
        _sums(w, task),
    )
    _, values, _, which, _ = _lines(w, task, 0)
    for i in range(n):
        for byte in range(0, w[DIM] * kind.itemsize, LINE):
            touch(values[i] + byte)
    for g in range(len(weights)):
        for t in range(TILE):
            weights[g, t] *= factors[t]
    add_rows(weights, which, values, n, total, kind)


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
def _begin_high(w, h, kind, stored, task):
    """Raises the part's top to the largest logits in the cluster of highest rank.

    Without it the values of all tokens that are attended before that cluster seem to count.
    """
    best, count = i8(w, FOUND)[h, 6], w[GROUP]
    if best < 0:
        return
    keys, size = _place_of(w, h, best, stored)
    n = min(size, np.int64(TILE))
    _list_cluster(w, h, kind, stored, task, NONE, NONE, best, keys, size, NONE, n)
    _score_tokens(w, _asking(w, stored), task, NONE, n, stored)
    scores, (top, mass, total) = _scores(w, task), _sums(w, task)
    for g in range(count):
        _raise_top(highest(scores[g, :n]), g, top, mass, total)


@jit()
def _list_cluster(w, h, kind, stored, task, tile, at, candidate, keys, size, first, n):
    """Tokens first ... first + n - 1 of a cluster of `size` become `at` ... of a tile.

    The cluster's keys lie at the address `keys`.
    """
    width, each = row_bytes(w, stored), scale_bytes(w, stored)
    key_at, value_at, scale_at, _, _ = _lines(w, task, tile)
    for i in range(n):
        t = first + i
        key_at[at + i], value_at[at + i] = keys + t * width, keys + (size + t) * width
    if not is_plain(stored):
        base, shared = _bases(w, task, tile), f4(w, PART_SHARED)[task]
        s, c = i4(w, SEGMENT)[h, candidate], np.int64(i4(w, CLUSTER)[h, candidate])
        if first == 0:
            _score_centre(w, h, s, c, kind, f4(w, PART_CENTRE)[task], shared)
        for i in range(n):
            scale_at[at + i] = keys + 2 * (size * width + (first + i) * each)
            touch(scale_at[at + i])
        for g in range(w[GROUP]):
            base[g, at : at + n] = shared[g]


@jit()
def _asking(w, stored):
    """The queries as stored keys are to be asked."""
    return f4(w, Q_TURNED) if is_int4(stored) else f4(w, Q)


@jit()
def _attend_exactly(w, kind, stored, task):
    """The retrieved tokens of a part of the clusters of one head; returns the rows read.

    Rows are asked for a tile ahead of the one that is worked on.
    """
    h, part, parts, q = task // w[PARTS], task % w[PARTS], w[PARTS], _asking(w, stored)
    zones, candidates, width = i4(w, ZONE)[h], i8(w, FOUND)[h, 1], row_bytes(w, stored)
    threshold = np.float32(f8(w, RULES)[0, SEEN_VALUES] / max(1, i8(w, TOKENS)[0, h]))
    _begin_high(w, h, kind, stored, task)
    # Of sharp attention few values count.
    read, n, tiles, sharp = np.int64(0), NONE, NONE, i8(w, FOUND)[h, 5] != 0
    for i in range(part, candidates, parts):
        if zones[i] != RETRIEVED:
            continue
        keys, size = _place_of(w, h, i, stored)
        read += size
        for line in range(0, size * width if sharp else 2 * size * width, LINE):
            touch(keys + line)
        first = NONE
        while first < size:
            taken = min(size - first, TILE - n)
            _list_cluster(w, h, kind, stored, task, tiles % 2, n, i, keys, size, first, taken)
            first += taken
            n += taken
            if n == TILE:
                if tiles > 0:
                    read += _add_tokens(w, q, task, (tiles + 1) % 2, n, threshold, stored)
                tiles += 1
                n = NONE
    if tiles > 0:
        read += _add_tokens(w, q, task, (tiles + 1) % 2, np.int64(TILE), threshold, stored)
    return read + _add_tokens(w, q, task, tiles % 2, n, threshold, stored)


@jit()
def attend_steady(w, kept, task):
    """Part of pass 1: a part of the steady zone of one head begins the sums of that part."""
    h, part, parts = task // w[PARTS], task % w[PARTS], w[PARTS]
    top, mass, total = _sums(w, task)
    top[:], mass[:], total[:] = np.float32(-np.inf), np.float32(0.0), np.float32(0.0)
    keys, values, _, _, _ = _lines(w, task, NONE)
    width = w[DIM] * kept.itemsize
    first, stop = w[STEADY_TOKENS] * part // parts, w[STEADY_TOKENS] * (part + 1) // parts
    for t in range(first, stop, TILE):
        n = min(np.int64(TILE), stop - t)
        for i in range(n):
            place = h * w[STEADY_STRIDE] + (t + i) * width
            keys[i], values[i] = w[STEADY_K] + place, w[STEADY_V] + place
        _add_tokens(w, f4(w, Q), task, NONE, n, np.float32(0.0), kept)


@jit()
def _shrunk(w, task, tops):
    """PART_SHARED[g]: what a share relative to e^tops[g] is relative to e^PART_TOP[g]."""
    shrink, top = f4(w, PART_SHARED)[task], f4(w, PART_TOP)[task]
    for g in range(len(top)):
        shrink[g] = exp(tops[g] - top[g])
    return shrink


@jit()
def _add_fine(w, h, kind, task, threshold):
    """The estimated clusters among the candidates of a part; returns the value sums read."""
    part, parts, table, found = task % w[PARTS], w[PARTS], i8(w, TABLE), i8(w, FOUND)[h]
    places, clusters = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h]
    sizes, line, read = i4(w, SIZE)[h], w[DIM] * kind.itemsize, NONE
    shares = f4(w, FINE_SHARE)[h * w[GROUP] : (h + 1) * w[GROUP]]
    shrink = _shrunk(w, task, f4(w, FINE_TOP)[h])
    _, at, _, which, _ = _lines(w, task, NONE)
    factors = f4(w, PART_LINE)[2 * task + 1]
    start, stop = found[1] * part // parts, found[1] * (part + 1) // parts
    for first in range(start, stop, TILE):
        n = min(np.int64(TILE), stop - first)
        n = _weigh(w, task, shares, first, n, shrink, threshold)
        for i in range(n):
            entry = first + which[i]
            s, c = places[entry], np.int64(clusters[entry])
            held = table[s, S_CLUSTERS]
            at[i] = table[s, FINE + 1] + (h * held + c) * line
            factor = np.float32(1.0) / np.float32(sizes[entry])
            if w[SCALED]:
                factor *= to_float(scales_of(w, h, table[s, FINE + 2], held)[c, 1])
            factors[which[i]] = factor
        _add_sums(w, task, n, kind)
        read += n
    return read


@jit()
def _add_coarse(w, h, kind, task, threshold):
    """The groups of a part that are not descended into; returns the value sums read."""
    part, parts, table, line = task % w[PARTS], w[PARTS], i8(w, TABLE), w[DIM] * kind.itemsize
    shares = f4(w, COARSE_SHARE)[h * w[GROUP] : (h + 1) * w[GROUP]]
    shrink, sizes, read = _shrunk(w, task, f4(w, COARSE_TOP)[h]), i4(w, COARSE_SIZE)[h], NONE
    _, at, _, which, _ = _lines(w, task, NONE)
    factors = f4(w, PART_LINE)[2 * task + 1]
    for s in range(w[SEGMENTS] * part // parts, w[SEGMENTS] * (part + 1) // parts):
        groups, before = table[s, S_GROUPS], table[s, S_GROUPS_BEFORE]
        scales = scales_of(w, h, table[s, COARSE + 2], groups)
        for m in range(0, groups, TILE):
            n = min(np.int64(TILE), groups - m)
            n = _weigh(w, task, shares, before + m, n, shrink, threshold)
            for i in range(n):
                place = m + which[i]
                at[i] = table[s, COARSE + 1] + (h * groups + place) * line
                factor = np.float32(1.0) / np.float32(sizes[before + place])
                if w[SCALED]:
                    factor *= to_float(scales[place, 1])
                factors[which[i]] = factor
            _add_sums(w, task, n, kind)
            read += n
    return read


@jit()
def attend(w, kind, stored, task):
    """Pass 5: exact and estimated attention of a part of the clusters of one head."""
    h, count, (top, mass, total) = task // w[PARTS], w[GROUP], _sums(w, task)
    z = f4(w, Z)[h]
    threshold = np.float32(f8(w, RULES)[0, SEEN_SUMS] / max(1, i8(w, FOUND)[h, 3]))
    rows_read = _attend_exactly(w, kind, stored, task)
    for g in range(count):
        _raise_top(max(z[g], NOTHING), g, top, mass, total)
    f4(w, PART_EXACT)[task, :] = mass
    sums_read = _add_fine(w, h, kind, task, threshold)
    if w[TWO_LEVEL]:
        sums_read += _add_coarse(w, h, kind, task, threshold)
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
