"""The passes of a compiled decode step that attend: steady zone, retrieved, estimated."""

from __future__ import annotations

import numpy as np

from .jit_numba import copy, exp, jit, to_float, touch
from .tiles_numba import add_rows, highest
from .wave_parts_numba import centres_of, factors_of, lines_of, list_heavy, scores_of, sums_of
from .wave_rows_numba import add_centres, add_stored, multiply_columns, stored_dots
from .wave_words_numba import (
    BLOCKS,
    CLUSTER,
    COARSE,
    COARSE_SHARE,
    COARSE_SIZE,
    COARSE_TOP,
    DIM,
    FINE,
    FINE_LOGIT,
    FINE_SHARE,
    FINE_TOP,
    FOUND,
    GROUP,
    LINE,
    NONE,
    NOTHING,
    ONE,
    PART_BYTES,
    PART_EXACT,
    PART_LINE,
    PART_SHARED,
    PART_TOP,
    PARTS,
    PLACE,
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
    Z,
    f4,
    f8,
    i4,
    i8,
    is_plain,
    row_bytes,
    runs_of,
    scale_bytes,
    scales_of,
)

BURST = 8
"""Rows that are asked for at once."""


@jit()
def _ask(w, task, tile, first, stop, both, stored):
    """Asks for keys first ... stop - 1 of a tile, and for their values if `both` are wanted."""
    keys, values, _, _, _ = lines_of(w, task, tile)
    for byte in range(0, row_bytes(w, stored), LINE):
        for t in range(first, stop):
            touch(keys[t] + byte)
        for t in range(first, stop if both else first):
            touch(values[t] + byte)


@jit()
def _score_tokens(w, task, tile, n, following, both, stored):
    """PART_SCORES[g, t] of n <= TILE tokens whose addresses `lines_of` has.

    Between products rows of the other tile, in which so many tokens are `following`, are asked
    for: all at once they would be waited for (`_ask` says what `both` is).
    """
    for begin in range(0, TILE, BURST):
        _ask(w, task, 1 - tile, begin, min(begin + BURST, following), both, stored)
        some = min(np.int64(BURST), n - begin)
        if some > 0:
            stored_dots(w, task, tile, begin, some, stored)
    if not is_plain(stored):
        add_centres(w, task, tile, n, stored)


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
def _add_tokens(w, task, tile, n, threshold, following, both, stored):
    """Attends n <= TILE tokens exactly: see `_score_tokens`.

    Sums and masses of the part are relative to e^top. Returns the number of value rows read.
    """
    if n == 0:
        return NONE
    count, scores, (top, mass, total) = w[GROUP], scores_of(w, task), sums_of(w, task)
    heaviest = f4(w, PART_LINE)[2 * task]
    _score_tokens(w, task, tile, n, following, both, stored)
    for g in range(count if n < TILE else NONE):
        scores[g, n:] = np.float32(-np.inf)
    if _any_above(scores, top, heaviest):
        for g in range(count):
            _raise_top(highest(scores[g]), g, top, mass, total)
    heaviest[:] = np.float32(0.0)
    for g in range(count):
        row, high, added = scores[g], top[g], np.float32(0.0)
        for t in range(len(row)):
            row[t] = exp(row[t] - high)
        for t in range(len(row)):
            added += row[t]
            heaviest[t] = max(heaviest[t], row[t])
        mass[g] += added
    _, values, scales, which, _ = lines_of(w, task, tile)
    read, later = list_heavy(heaviest, n, threshold, which), scale_bytes(w, stored)
    for i in range(read):
        values[i], scales[i] = values[which[i]], scales[which[i]] + later
    add_stored(w, task, tile, read, stored)
    return read


@jit()
def _any_above(scores, top, lead):
    """Whether scores[g, t] > top[g] anywhere in a tile; `lead` is room for a row."""
    lead[:] = np.float32(-np.inf)
    for g in range(len(top)):
        row, high = scores[g], top[g]
        for t in range(len(row)):
            lead[t] = max(lead[t], row[t] - high)
    return highest(lead) > np.float32(0.0)


@jit()
def _weigh(w, task, shares, first, n, shrink, threshold):
    """Adds the masses of entries first ... first + n - 1 (n <= TILE).

    Their weights are in PART_SCORES; returns how many weigh more than `threshold`, and which
    they are in the last but one of `lines_of`.
    """
    weights, (_, mass, _), heaviest = (
        scores_of(w, task),
        sums_of(w, task),
        f4(w, PART_LINE)[2 * task],
    )
    heaviest[:] = np.float32(0.0)
    for g in range(len(mass)):
        row, factor, added = weights[g], shrink[g], np.float32(0.0)
        some = shares[g, first : first + n]
        for t in range(n):
            row[t] = some[t] * factor
        row[n:] = np.float32(0.0)
        for t in range(len(row)):
            added += row[t]
            heaviest[t] = max(heaviest[t], row[t])
        mass[g] += added
    return list_heavy(heaviest, n, threshold, lines_of(w, task, 0)[3])


@jit()
def _add_sums(w, task, n, kind):
    """Adds n value sums: the i-th, of column `which[i]`, is at values[i], see `lines_of`.

    The weight of column t is to be multiplied by `factors_of`[t].
    """
    weights, factors, (_, _, total) = scores_of(w, task), factors_of(w, task), sums_of(w, task)
    _, values, _, which, _ = lines_of(w, task, 0)
    for byte in range(0, w[DIM] * kind.itemsize, LINE):
        for i in range(n):
            touch(values[i] + byte)
    multiply_columns(weights, factors)
    add_rows(weights, which, values, n, total, kind)


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
def _begin_high(w, h, stored, task):
    """Raises the part's top to the largest logits in the cluster of highest rank.

    Without it the values of all tokens that are attended before that cluster seem to count.
    """
    best, count = i8(w, FOUND)[h, 6], w[GROUP]
    if best < 0:
        return
    keys, size = _place_of(w, h, best, stored)
    n = min(size, np.int64(TILE))
    _list_cluster(w, stored, task, NONE, NONE, best, keys, size, NONE, n)
    _score_tokens(w, task, NONE, n, NONE, False, stored)
    scores, (top, mass, total) = scores_of(w, task), sums_of(w, task)
    for g in range(count):
        _raise_top(highest(scores[g, :n]), g, top, mass, total)


@jit()
def _list_cluster(w, stored, task, tile, at, candidate, keys, size, first, n):
    """Tokens first ... first + n - 1 of a cluster of `size` become `at` ... of a tile.

    The cluster's keys lie at the address `keys`.
    """
    width, each = row_bytes(w, stored), scale_bytes(w, stored)
    key_at, value_at, scale_at, _, _ = lines_of(w, task, tile)
    values, scales = keys + size * width, keys + 2 * size * width
    # More than n, as many as vector instructions are made for.
    key_at, value_at = key_at[at : at + TILE], value_at[at : at + TILE]
    for i in range(len(key_at)):
        key_at[i] = keys + (first + i) * width
    for i in range(len(value_at)):
        value_at[i] = values + (first + i) * width
    if not is_plain(stored):
        for byte in range(2 * first * each, 2 * (first + n) * each, LINE):
            touch(scales + byte)
        scale_at = scale_at[at : at + TILE]
        for i in range(len(scale_at)):
            scale_at[i] = scales + 2 * (first + i) * each
        centres, begin = centres_of(w, task, tile), task // w[PARTS] * w[GROUP]
        logits = f4(w, FINE_LOGIT)[begin : begin + w[GROUP]]
        for g in range(len(centres)):
            logit, row = logits[g, candidate], centres[g, at : at + TILE]
            for i in range(len(row)):
                row[i] = logit


@jit()
def _attend_exactly(w, stored, task):
    """The retrieved tokens of a part of the clusters of one head; returns the rows read.

    Rows are asked for while the tile before theirs is worked on.
    """
    h, part, parts = task // w[PARTS], task % w[PARTS], w[PARTS]
    zones, candidates = i4(w, ZONE)[h], i8(w, FOUND)[h, 1]
    threshold = np.float32(f8(w, RULES)[0, SEEN_VALUES] / max(1, i8(w, TOKENS)[0, h]))
    _begin_high(w, h, stored, task)
    # Of sharp attention few values count.
    read, n, tile, before, both = np.int64(0), NONE, NONE, NONE, i8(w, FOUND)[h, 5] == 0
    for i in range(part, candidates, parts):
        if zones[i] != RETRIEVED:
            continue
        keys, size = _place_of(w, h, i, stored)
        read += size
        first = NONE
        while first < size:
            taken = min(size - first, TILE - n)
            _list_cluster(w, stored, task, tile, n, i, keys, size, first, taken)
            first += taken
            n += taken
            if n == TILE:
                if before == 0:
                    _ask(w, task, tile, NONE, n, both, stored)
                read += _add_tokens(w, task, ONE - tile, before, threshold, n, both, stored)
                tile, before, n = ONE - tile, n, NONE
    read += _add_tokens(w, task, ONE - tile, before, threshold, n, both, stored)
    return read + _add_tokens(w, task, tile, n, threshold, NONE, both, stored)


@jit()
def attend_steady(w, kept, task):
    """Part of pass 1: a part of the steady zone of one head begins the sums of that part."""
    h, part, parts = task // w[PARTS], task % w[PARTS], w[PARTS]
    top, mass, total = sums_of(w, task)
    top[:], mass[:], total[:] = np.float32(-np.inf), np.float32(0.0), np.float32(0.0)
    keys, values, _, _, _ = lines_of(w, task, NONE)
    width = w[DIM] * kept.itemsize
    first, stop = w[STEADY_TOKENS] * part // parts, w[STEADY_TOKENS] * (part + 1) // parts
    for t in range(first, stop, TILE):
        n = min(np.int64(TILE), stop - t)
        for i in range(n):
            place = h * w[STEADY_STRIDE] + (t + i) * width
            keys[i], values[i] = w[STEADY_K] + place, w[STEADY_V] + place
        _add_tokens(w, task, NONE, n, np.float32(0.0), NONE, False, kept)


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
    _, at, _, which, _ = lines_of(w, task, NONE)
    factors = factors_of(w, task)
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
    _, at, _, which, _ = lines_of(w, task, NONE)
    factors = factors_of(w, task)
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
    h, count, (top, mass, total) = task // w[PARTS], w[GROUP], sums_of(w, task)
    z = f4(w, Z)[h]
    threshold = np.float32(f8(w, RULES)[0, SEEN_SUMS] / max(1, i8(w, FOUND)[h, 3]))
    rows_read = _attend_exactly(w, stored, task)
    for g in range(count):
        _raise_top(max(z[g], NOTHING), g, top, mass, total)
    copy(mass, f4(w, PART_EXACT)[task])
    sums_read = _add_fine(w, h, kind, task, threshold)
    if w[TWO_LEVEL]:
        sums_read += _add_coarse(w, h, kind, task, threshold)
    width = row_bytes(w, stored) + scale_bytes(w, stored)
    i8(w, PART_BYTES)[0, task] = rows_read * width + sums_read * w[DIM] * kind.itemsize
