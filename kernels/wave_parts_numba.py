"""What the parts of a head's clusters have summed in a compiled decode step, and all together."""

from __future__ import annotations

import numpy as np

from .jit_numba import exp, jit
from .wave_words_numba import (
    BYTES,
    DIM,
    EXACT,
    FOUND,
    GROUP,
    GROUPS,
    LSE,
    LSE_EXACT,
    NONE,
    OUT,
    PART_AT,
    PART_BYTES,
    PART_CENTRE,
    PART_EXACT,
    PART_LINE,
    PART_MASS,
    PART_ROWS,
    PART_SCORES,
    PART_SUM,
    PART_TOP,
    PARTS,
    SCALED,
    TILE,
    TWO_LEVEL,
    Z,
    f4,
    i8,
)


@jit()
def sums_of(w, task):
    """What a part has summed: logarithms the sums are relative to, masses, sums of values."""
    count = w[GROUP]
    total = f4(w, PART_SUM)[task * count : (task + 1) * count]
    return f4(w, PART_TOP)[task], f4(w, PART_MASS)[task], total


@jit()
def scores_of(w, task):
    """[G, TILE]: logits, then weights, of a tile."""
    return f4(w, PART_SCORES)[task * w[GROUP] : (task + 1) * w[GROUP]]


@jit()
def factors_of(w, task):
    """[TILE]: what the columns of a tile are to be multiplied by."""
    return f4(w, PART_LINE)[2 * task + 1]


@jit()
def rows_of_part(w, task):
    """[TILE, D]: room for decoded rows."""
    return f4(w, PART_ROWS)[task * TILE : (task + 1) * TILE]


@jit()
def lines_of(w, task, tile):
    """Of a tile: addresses of keys, values and scales, columns that are listed, room for more."""
    at = i8(w, PART_AT)[5 * (2 * task + tile) : 5 * (2 * task + tile) + 5]
    return at[0], at[1], at[2], at[3], at[4]


@jit()
def centres_of(w, task, tile):
    """[G, TILE]: logits of the centres of a tile's coded keys."""
    first = (2 * task + tile) * w[GROUP]
    return f4(w, PART_CENTRE)[first : first + w[GROUP]]


@jit()
def list_heavy(heaviest, n, threshold, which):
    """which[i] is the i-th of n <= TILE columns that are above `threshold`; how many there are."""
    heavy = NONE
    for t in range(n):
        which[heavy] = t
        heavy += np.int64(heaviest[t] > threshold)
    return heavy


@jit()
def merge_parts(w, kind, h):
    """Pass 6: the parts of one head together, and the bytes read."""
    count, parts, z = w[GROUP], w[PARTS], f4(w, Z)
    tops, masses, exacts = f4(w, PART_TOP), f4(w, PART_MASS), f4(w, PART_EXACT)
    sums, outs = f4(w, PART_SUM), f4(w, OUT)
    shares, lses, all_lses = f4(w, EXACT)[0], f4(w, LSE_EXACT)[0], f4(w, LSE)[0]
    found, part_bytes = i8(w, FOUND), i8(w, PART_BYTES)[0]
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
