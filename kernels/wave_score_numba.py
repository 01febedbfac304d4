"""The first four passes of a compiled decode step: which clusters matter, and how much."""

from __future__ import annotations

import numpy as np
from numba import carray

from .jit_numba import copy, exp, jit, pointer, to_float, touch
from .tiles_numba import address, largest
from .wave_attention import BUCKETS
from .wave_masses_numba import add_masses, keep, rank, rank_by_centroid, weigh
from .wave_rows_numba import asked_dots, turn
from .wave_select_numba import bucket_of, select
from .wave_words_numba import (
    BUCKET_TOKENS,
    CALM,
    CLUSTER,
    COARSE,
    COARSE_MASS,
    COARSE_RANK,
    COARSE_SHARE,
    COARSE_SIZE,
    COARSE_SPREAD,
    COARSE_TOP,
    COARSE_ZONE,
    DESCEND,
    DIM,
    DROPPED,
    EPSILON,
    ESTIMATED,
    FINE,
    FINE_LOGIT,
    FINE_MASS,
    FINE_SHARE,
    FINE_TOP,
    FLAT,
    FLAT_DESCEND,
    FLAT_TOKENS,
    FLOOR,
    FOUND,
    FROZEN,
    GROUP,
    GROUPS,
    LEAST,
    LEAST_GROUPS,
    LINE,
    LOGS,
    MEAN,
    MOST,
    NONE,
    NORMS,
    ONE,
    PART_MASS,
    PART_TOP,
    PARTS,
    PROGRESS,
    Q_AT,
    Q_CODE,
    Q_STEP,
    Q_TURNED,
    Q_WHOLE,
    RANK,
    RETRIEVED,
    RULES,
    S_CLUSTERS,
    S_GROUPS,
    S_GROUPS_BEFORE,
    S_SINGLES,
    S_SINGLES_BEFORE,
    S_TOKENS,
    SCALE,
    SCALED,
    SECOND_ORDER,
    SEGMENT,
    SEGMENTS,
    SHARE_CLUSTERS,
    SHARE_ESTIMATED,
    SHARE_TOKENS,
    SHARP_DESCEND,
    SHARP_TOKENS,
    SINGLE_MASS,
    SINGLES,
    SIZE,
    STEADY_LSE,
    SURE,
    TABLE,
    TOKENS,
    TWO_LEVEL,
    WHOLE,
    ZONE,
    Q,
    Z,
    f4,
    f8,
    i2,
    i4,
    i8,
    is_int4,
    rows_of,
    runs_of,
    scales_of,
)


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
def _products(w, h, s, level, start, stop, out, at, factors, variances, lines, kind):
    """Queries times centroids of clusters (or groups) start ... stop of segment s: out[g, at ...].

    Also what `finish` needs of each, from factors[0] and variances[0] on; `lines` is room for as
    many addresses.
    """
    table = i8(w, TABLE)
    held = table[s, S_GROUPS] if level == COARSE else table[s, S_CLUSTERS]
    centroids = rows_of(w, h, table[s, level], held, kind)
    scales = scales_of(w, h, table[s, level + 2], held)
    spreads = carray(pointer(table[s, level + 3] + h * held * 2), held, np.uint16)
    line, n = w[DIM] * kind.itemsize, stop - start
    for i in range(n):
        lines[i] = address(centroids) + (start + i) * line
    asked_dots(w, h, lines, n, out, at, kind)
    factors[:n], variances[:n] = np.float32(1.0), np.float32(0.0)
    if w[SCALED]:
        for c in range(n):
            factors[c] = to_float(scales[start + c, 0])
    if w[SECOND_ORDER]:
        for c in range(n):
            variances[c] = to_float(spreads[start + c])


@jit()
def _log_masses(w, h, logits, at, out, first, n, factors, variances, logs, base):
    """Of n products, logits[g, at ...], logits are made, and log masses out[g, first ...].

    `logs` are the logs of the sizes.
    """
    norms, count = f4(w, NORMS)[0], w[GROUP]
    for g in range(count):
        own, masses = logits[g, at : at + n], out[g, first : first + n]
        for c in range(n):
            own[c] = own[c] * factors[c] + base[g]
            masses[c] = own[c]
        finish(masses, variances, logs, norms[h * count + g])


@jit()
def finish(scores, variances, logs, norm):
    """Logits become log masses: `log_mass` of the reference."""
    for c in range(len(scores)):
        variance, log_size = norm * variances[c], logs[c]
        room = max(log_size, np.float32(0.0))
        frozen = np.sqrt(np.float32(2.0) * variance * room) - room
        half = variance * np.float32(0.5)
        gain = half if half <= room else frozen
        scores[c] += log_size + gain


@jit()
def _ask_numbers(w, s, level, start, stop):
    """Asks for scales and spreads of rows start ... stop - 1 of all heads."""
    table = i8(w, TABLE)
    for byte in range(4 * start, 4 * stop if w[SCALED] else NONE, LINE):
        touch(table[s, level + 2] + byte)
    for byte in range(2 * start, 2 * stop, LINE):
        touch(table[s, level + 3] + byte)


@jit(allocates=True)
def score_first(w, kind, task):
    """Pass 1: the groups and singles of one segment for one head."""
    h, s = task // w[SEGMENTS], task % w[SEGMENTS]
    count, table, logs_of = w[GROUP], i8(w, TABLE), f4(w, LOGS)[0]
    clusters, groups, singles = table[s, S_CLUSTERS], table[s, S_GROUPS], table[s, S_SINGLES]
    base, n = np.empty(count, np.float32), max(groups, singles)
    lines = np.empty(n, np.int64)
    logs, factors, variances = (
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
    )
    starts, offsets = runs_of(w, h, s)
    # Until there are candidates their room holds groups, then singles.
    logits = f4(w, FINE_LOGIT)[h * count : (h + 1) * count]
    for byte in range(0, (clusters + 1) * 4 if w[TWO_LEVEL] else NONE, LINE):
        touch(address(starts) + byte)
    _ask_numbers(w, s, COARSE, h * groups, (h + 1) * groups)
    _ask_numbers(w, s, FINE, (h + 1) * clusters - singles, (h + 1) * clusters)
    _bases(w, h, s, base)
    if w[TWO_LEVEL]:
        sizes, zones = i4(w, COARSE_SIZE)[h], i4(w, COARSE_ZONE)[h]
        before = table[s, S_GROUPS_BEFORE]
        for m in range(groups):
            held = starts[offsets[m + 1]] - starts[offsets[m]]
            sizes[before + m] = held
            zones[before + m] = DROPPED
            logs[m] = logs_of[held]
        masses = f4(w, COARSE_MASS)[h * count : (h + 1) * count]
        _products(w, h, s, COARSE, NONE, groups, logits, before, factors, variances, lines, kind)
        f4(w, COARSE_SPREAD)[h, s] = variances[:groups].sum()
        _log_masses(w, h, logits, before, masses, before, groups, factors, variances, logs, base)
    logs[:singles] = np.float32(0.0)
    masses = f4(w, SINGLE_MASS)[h * count : (h + 1) * count]
    before, first = table[s, S_SINGLES_BEFORE], clusters - singles
    at = w[GROUPS] + before
    _products(w, h, s, FINE, first, clusters, logits, at, factors, variances, lines, kind)
    _log_masses(w, h, logits, at, masses, before, singles, factors, variances, logs, base)


@jit()
def _level(w, h, mass, share, top):
    """Of one head: log masses, shares and what these are relative to; and Z."""
    own = slice(h * w[GROUP], (h + 1) * w[GROUP])
    return f4(w, mass)[own], f4(w, share)[own], f4(w, top)[h], f4(w, Z)[h]


@jit()
def _variance(w, h):
    """Of a group's logits, on the mean over the groups and over the queries of one head."""
    spread, norm, count = 0.0, 0.0, w[GROUP]
    for s in range(w[SEGMENTS]):
        spread += f4(w, COARSE_SPREAD)[h, s]
    for g in range(count):
        norm += f4(w, NORMS)[0, h * count + g]
    return spread / w[GROUPS] * norm / count


@jit()
def _descend(w, h, wanted, everything):
    """Marks the groups to descend into; returns how many tokens may be retrieved."""
    count, groups, rules, found = w[GROUP], w[GROUPS], f8(w, RULES)[0], i8(w, FOUND)[h]
    ranks, sizes, zones = f4(w, COARSE_RANK)[h], i4(w, COARSE_SIZE)[h], i4(w, COARSE_ZONE)[h]
    masses, shares, tops, z = _level(w, h, COARSE_MASS, COARSE_SHARE, COARSE_TOP)
    copy(f4(w, STEADY_LSE)[0, h * count : (h + 1) * count], z)
    weigh(masses, groups, shares, tops, z)
    add_masses(f4(w, SINGLE_MASS)[h * count : (h + 1) * count], w[SINGLES], z)
    rank(shares, groups, tops, z, ranks)
    share, variance = rules[DESCEND], _variance(w, h)
    if variance < rules[FLAT]:
        share = max(share, rules[FLAT_DESCEND])
        flat = min(rules[MOST], np.ceil(rules[FLAT_TOKENS] * everything))
        wanted = max(wanted, np.int64(flat))
    most = np.int64(max(np.ceil(share * groups), rules[LEAST_GROUPS]))
    reached = select(w, h, ranks, sizes, groups, 0.0, everything, most, NONE, 0.0, zones, RETRIEVED)
    left = 0.0
    for m in range(groups):
        if zones[m] == DROPPED:
            left += ranks[m]
    sure = rules[SURE] if variance >= rules[FROZEN] else rules[CALM]
    found[5] = left < sure * count
    if found[5]:
        more = max(np.ceil(rules[SHARP_DESCEND] * groups), np.float64(most))
        select(
            w,
            h,
            ranks,
            sizes,
            groups,
            0.0,
            everything,
            np.int64(more),
            NONE,
            0.0,
            zones,
            RETRIEVED,
        )
        sharp = max(np.int64(np.ceil(rules[SHARP_TOKENS] * everything)), 2 * w[LEAST])
        return max(wanted, sharp)
    if not w[WHOLE] or w[SINGLES] + reached >= wanted:
        return wanted
    held = i8(w, BUCKET_TOKENS)[h]
    filled, edge = w[SINGLES], BUCKETS
    while edge > 0 and filled + held[edge - 1] < wanted:
        edge -= 1
        filled += held[edge]
    for m in range(groups):
        bucket = bucket_of(ranks[m])
        if bucket >= edge:
            zones[m] = RETRIEVED
        elif bucket == edge - 1 and filled < wanted:
            zones[m] = RETRIEVED
            filled += sizes[m]
        else:
            zones[m] = DROPPED
    return everything


@jit(entry=True)
def prepare(w, stored):
    """Before all passes: queries times scale as float32, and the squares of their lengths.

    Where stored rows are rotated, rotated queries too.
    """
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
        _round(q[h], norms[h], i2(w, Q_WHOLE)[h], f4(w, Q_STEP)[0, h : h + 1])
    if is_int4(stored):
        turned = f4(w, Q_TURNED)
        copy(flat, turned.reshape(n))
        turn(turned)


@jit()
def _round(q, norm, whole, step):
    """q = step[0] * whole; NaN where q holds a number that is not finite."""
    top = np.float32(0.0)
    for d in range(len(q)):
        top = max(top, abs(q[d]))
    unit = top / largest(len(q))
    back = np.float32(1.0) / unit if unit > np.float32(0.0) else np.float32(0.0)
    for d in range(len(q)):
        whole[d] = np.int16(np.rint(q[d] * back))
    step[0] = unit if np.isfinite(norm) else np.float32(np.nan)


@jit()
def _scale(source, scale, out):
    for i in range(len(out)):
        out[i] = to_float(source[i]) * scale


@jit()
def _steady_lse(w, h):
    """The log mass of the steady zone for one head's queries, from what its parts summed."""
    count, parts = w[GROUP], w[PARTS]
    tops, masses = f4(w, PART_TOP), f4(w, PART_MASS)
    lses = f4(w, STEADY_LSE)[0, h * count : (h + 1) * count]
    for g in range(count):
        top, total = np.float32(-np.inf), np.float32(0.0)
        for task in range(h * parts, (h + 1) * parts):
            top = max(top, tops[task, g])
        for task in range(h * parts, (h + 1) * parts):
            if masses[task, g] > 0:
                total += masses[task, g] * exp(tops[task, g] - top)
        lses[g] = top + np.log(total) if total > 0 else top


@jit()
def find(w, h):
    """Pass 2: the candidates of one head, where they are and how many tokens they hold."""
    _steady_lse(w, h)
    table, zones, found = i8(w, TABLE), i4(w, COARSE_ZONE)[h], i8(w, FOUND)[h]
    places, clusters, sizes = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h], i4(w, SIZE)[h]
    everything, occupied, n = np.int64(0), np.int64(0), np.int64(0)
    for s in range(w[SEGMENTS]):
        everything += table[s, S_TOKENS]
    rules = f8(w, RULES)[0]
    share = max(np.float64(w[LEAST]), np.ceil(rules[SHARE_TOKENS] * everything))
    wanted = np.int64(min(rules[MOST], share))
    found[5] = 0
    if w[TWO_LEVEL]:
        wanted = _descend(w, h, wanted, everything)
    for s in range(w[SEGMENTS]):
        starts, offsets = runs_of(w, h, s)
        groups, before = table[s, S_GROUPS], table[s, S_GROUPS_BEFORE]
        occupied += offsets[groups] + table[s, S_SINGLES]
        m = np.int64(0)
        while m < groups:
            first = offsets[m]
            while m < groups and not (w[TWO_LEVEL] and zones[before + m] == DROPPED):
                m += 1
            for i in range(offsets[m] - first):
                c = first + i
                places[n + i], clusters[n + i], sizes[n + i] = s, c, starts[c + 1] - starts[c]
            n += offsets[m] - first
            m += 1
    found[0] = n
    for s in range(w[SEGMENTS]):
        end = table[s, S_CLUSTERS]
        for c in range(end - table[s, S_SINGLES], end):
            places[n], clusters[n], sizes[n] = s, c, 1
            n += 1
    found[1], found[2], found[3], found[4] = n, wanted, occupied, everything


@jit()
def _list_found(w, h, s, clusters, sizes, logs, factors, variances, lines, kind):
    """Addresses of clusters of segment s, and what `finish` needs of each."""
    table, logs_of = i8(w, TABLE), f4(w, LOGS)[0]
    held, line = table[s, S_CLUSTERS], w[DIM] * kind.itemsize
    rows = table[s, FINE] + h * held * line
    scales = scales_of(w, h, table[s, FINE + 2], held)
    spreads = carray(pointer(table[s, FINE + 3] + h * held * 2), held, np.uint16)
    # All are asked for before the first is waited for.
    for i in range(len(clusters)):
        c = np.int64(clusters[i])
        lines[i] = rows + c * line
        for byte in range(0, line, LINE):
            touch(lines[i] + byte)
        touch(address(spreads) + 2 * c)
        if w[SCALED]:
            touch(address(scales) + 4 * c)
    for i in range(len(clusters)):
        c = np.int64(clusters[i])
        logs[i] = logs_of[sizes[i]]
        factors[i] = to_float(scales[c, 0]) if w[SCALED] else np.float32(1.0)
        variances[i] = to_float(spreads[c]) if w[SECOND_ORDER] else np.float32(0.0)


@jit(allocates=True)
def score_found(w, kind, task):
    """Pass 3: log masses of a part of the grouped candidates, segment by segment."""
    h, part, count = task // w[PARTS], task % w[PARTS], w[GROUP]
    places, clusters, sizes = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h], i4(w, SIZE)[h]
    found = i8(w, FOUND)[h, 0]
    at, end = found * part // w[PARTS], found * (part + 1) // w[PARTS]
    base, lines = np.empty(count, np.float32), np.empty(end - at, np.int64)
    logs, factors, variances = (
        np.empty(end - at, np.float32),
        np.empty(end - at, np.float32),
        np.empty(end - at, np.float32),
    )
    masses = f4(w, FINE_MASS)[h * count : (h + 1) * count]
    logits = f4(w, FINE_LOGIT)[h * count : (h + 1) * count]
    while at < end:
        s, first = np.int64(places[at]), at
        while at < end and places[at] == s:
            at += 1
        _list_found(
            w, h, s, clusters[first:at], sizes[first:at], logs, factors, variances, lines, kind
        )
        _bases(w, h, s, base)
        n = at - first
        asked_dots(w, h, lines, n, logits, first, kind)
        _log_masses(w, h, logits, first, masses, first, n, factors, variances, logs, base)


@jit(allocates=True)
def choose(w, h):
    """Pass 4: the zone of each candidate of one head, and the masses of what is estimated."""
    count, groups, rules, found = w[GROUP], w[GROUPS], f8(w, RULES)[0], i8(w, FOUND)[h]
    masses, shares, tops, z = _level(w, h, FINE_MASS, FINE_SHARE, FINE_TOP)
    ranks, sizes, zones = f4(w, RANK)[h], i4(w, SIZE)[h], i4(w, ZONE)[h]
    singles, logits, n, left = f4(w, SINGLE_MASS), f4(w, FINE_LOGIT), found[1], 0.0
    for g in range(count):
        at = h * count + g
        for u in range(w[SINGLES]):
            # A single has no spread: its mass is that of its logit.
            masses[g, found[0] + u] = logits[at, found[0] + u] = singles[at, u]
    copy(f4(w, STEADY_LSE)[0, h * count : (h + 1) * count], z)
    coarse, parts, highs, _ = _level(w, h, COARSE_MASS, COARSE_SHARE, COARSE_TOP)
    if w[TWO_LEVEL]:
        keep(coarse, groups, i4(w, COARSE_ZONE)[h], DROPPED, parts, highs, z)
    beside = z.copy()
    weigh(masses, n, shares, tops, z)
    if w[TWO_LEVEL]:
        left = rank(parts, groups, highs, z, f4(w, COARSE_RANK)[h])
    left += rank(shares, n, tops, z, ranks)
    if w[SECOND_ORDER]:
        for i in range(n):
            ranks[i] /= np.float32(sizes[i])
    else:
        rank_by_centroid(shares, n, sizes, ranks)
    most = n
    if rules[SHARE_CLUSTERS] < np.inf:
        most = max(np.int64(1), np.int64(np.rint(rules[SHARE_CLUSTERS] * found[3])))
    for i in range(n):
        zones[i] = ESTIMATED if rules[SHARE_ESTIMATED] >= 1.0 else DROPPED
    if rules[SHARE_ESTIMATED] < 1.0:
        number = most + np.int64(np.rint(rules[SHARE_ESTIMATED] * found[3]))
        select(w, h, ranks, sizes, n, 0.0, found[4], number, NONE, 0.0, zones, ESTIMATED)
    end = 0.0 if found[5] else rules[EPSILON] * count
    i8(w, TOKENS)[0, h] = select(
        w, h, ranks, sizes, n, left, found[2], most, w[FLOOR], end, zones, RETRIEVED
    )
    found[6] = NONE - ONE
    for i in range(n):
        if zones[i] == RETRIEVED and (found[6] < 0 or ranks[i] > ranks[found[6]]):
            found[6] = i
    copy(beside, z)
    keep(masses, n, zones, ESTIMATED, shares, tops, z)
