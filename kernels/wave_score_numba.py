"""The first four passes of a compiled decode step: which clusters matter, and how much."""

from __future__ import annotations

import numpy as np
from numba import carray

from .jit_numba import bits_of, exp, jit, pointer, to_float
from .wave_attention import BUCKET_SHIFT, BUCKETS, LOWEST_BUCKET
from .wave_words_numba import (
    BLOCK,
    BUCKET_MASS,
    BUCKET_NUMBER,
    BUCKET_TOKENS,
    CLUSTER,
    COARSE,
    COARSE_MASS,
    COARSE_RANK,
    COARSE_SIZE,
    COARSE_ZONE,
    DESCEND,
    DIM,
    DROPPED,
    EPSILON,
    ESTIMATED,
    FINE,
    FINE_MASS,
    FLOOR,
    FOUND,
    GROUP,
    GROUPS,
    LEAST,
    LEAST_GROUPS,
    LOGS,
    MEAN,
    MOST,
    NONE,
    NORMS,
    PART_MASS,
    PART_TOP,
    PARTS,
    Q_AT,
    Q_CODE,
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
    """out[g, at + i] = q[first + g] . rows[i] for n <= BLOCK rows, BLOCK at a time in registers."""
    for g in range(count):
        a = b = c = e = np.float32(0.0)
        for d in range(rows.shape[1]):
            x = q[first + g, d]
            a += x * rows[0, d]
            b += x * rows[1, d]
            c += x * rows[2, d]
            e += x * rows[3, d]
        out[g, at] = a
        if n > 1:
            out[g, at + 1] = b
        if n > 2:
            out[g, at + 2] = c
        if n > 3:
            out[g, at + 3] = e


@jit()
def add_rows(weights, at, rows, total):
    """total[g] += sum over BLOCK rows of weights[g, at + i] * rows[i]."""
    for g in range(total.shape[0]):
        a, b, c, e = weights[g, at], weights[g, at + 1], weights[g, at + 2], weights[g, at + 3]
        for d in range(total.shape[1]):
            total[g, d] += a * rows[0, d] + b * rows[1, d] + c * rows[2, d] + e * rows[3, d]


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
def _score(w, h, s, level, start, stop, logs, base, out, at, rows, kind):
    """Log masses of clusters (or groups) start ... stop of segment s into out[g, at ...].

    `logs` are the logs of their sizes, `level` is FINE or COARSE.
    """
    table, q, norms = i8(w, TABLE), f4(w, Q), f4(w, NORMS)
    held = table[s, S_GROUPS] if level == COARSE else table[s, S_CLUSTERS]
    centroids = rows_of(w, h, table[s, level], held, kind)
    scales = scales_of(w, h, table[s, level + 2], held)
    spreads = carray(pointer(table[s, level + 3] + h * held * 2), held, np.uint16)
    first, count = h * w[GROUP], w[GROUP]
    for c in range(start, stop, BLOCK):
        _load(centroids, c, stop, rows)
        dots(q, first, count, rows, out, at + c - start, stop - c)
    n = stop - start
    factors, variances = np.ones(n, np.float32), np.zeros(n, np.float32)
    if w[SCALED]:
        for c in range(n):
            factors[c] = to_float(scales[start + c, 0])
    if w[SECOND_ORDER]:
        for c in range(n):
            variances[c] = to_float(spreads[start + c])
    for g in range(count):
        _finish(out[g, at : at + n], factors, variances, logs, base[g], norms[0, first + g])


@jit()
def _finish(scores, factors, variances, logs, shift, norm):
    """Unscaled products become log masses: `log_mass` of the reference."""
    for c in range(len(scores)):
        variance, log_size = norm * variances[c], logs[c]
        room = max(log_size, np.float32(0.0))
        frozen = np.sqrt(np.float32(2.0) * variance * room) - room
        half = variance * np.float32(0.5)
        gain = half if half <= room else frozen
        scores[c] = scores[c] * factors[c] + shift + log_size + gain


@jit()
def _lse(masses, n, lse):
    """lse[g] = log(e^lse[g] + sum of e^masses[g, :n])."""
    for g in range(len(lse)):
        top = lse[g]
        for i in range(n):
            top = max(top, masses[g, i])
        if top == -np.inf:
            continue
        total = np.float32(0.0)
        for i in range(n):
            total += exp(masses[g, i] - top)
        lse[g] = top + np.log(total + exp(lse[g] - top))


@jit()
def _to_shares(masses, z, n):
    """masses[g, i] becomes e^(masses[g, i] - z[g])."""
    for g in range(len(z)):
        for i in range(n):
            masses[g, i] = exp(masses[g, i] - z[g])


@jit()
def _ranks(masses, z, n, out):
    """out[i] = sum over queries of e^(masses[g, i] - z[g]); returns the sum of all."""
    for i in range(n):
        out[i] = np.float32(0.0)
    for g in range(len(z)):
        for i in range(n):
            out[i] += exp(masses[g, i] - z[g])
    total = 0.0
    for i in range(n):
        total += out[i]
    return total


@jit()
def _bucket(rank):
    """`buckets` of the reference."""
    return np.int64(max((bits_of(rank) >> BUCKET_SHIFT) - LOWEST_BUCKET, 0))


@jit()
def _select(w, h, ranks, sizes, n, mass, tokens, clusters, floor, epsilon, zone, value):
    """`select` of the reference by a histogram: zone[i] = value for what is taken.

    Returns the tokens taken.
    """
    held, number, masses = (
        i8(w, BUCKET_TOKENS)[h],
        i8(w, BUCKET_NUMBER)[h],
        f8(w, BUCKET_MASS)[h],
    )
    for bucket in range(BUCKETS):
        held[bucket], number[bucket], masses[bucket] = 0, 0, 0.0
    for i in range(n):
        bucket = _bucket(ranks[i])
        held[bucket] += sizes[i]
        number[bucket] += 1
        masses[bucket] += ranks[i]
    edge, partial = np.int64(0), False
    taken_tokens, taken = np.int64(0), np.int64(0)
    if floor == 0 and mass < epsilon:
        return taken_tokens
    for bucket in range(BUCKETS - 1, -1, -1):
        if number[bucket] == 0:
            continue
        if taken_tokens + held[bucket] > tokens or taken + number[bucket] > clusters:
            edge, partial = bucket, True
            break
        taken_tokens += held[bucket]
        taken += number[bucket]
        mass -= masses[bucket]
        if taken >= floor and mass < epsilon and epsilon > 0.0:
            edge = bucket
            break
    for i in range(n):
        bucket = _bucket(ranks[i])
        if bucket > edge or (bucket == edge and not partial):
            zone[i] = value
        elif bucket == edge:
            if taken_tokens + sizes[i] > tokens or taken + 1 > clusters:
                partial = False
                edge += 1
            else:
                taken_tokens += sizes[i]
                taken += 1
                zone[i] = value
    return taken_tokens


@jit()
def score_first(w, kind, task):
    """Pass 1: the groups and singles of one segment for one head."""
    h, s = task // w[SEGMENTS], task % w[SEGMENTS]
    count, rows = w[GROUP], np.empty((BLOCK, w[DIM]), np.float32)
    table, logs_of = i8(w, TABLE), f4(w, LOGS)[0]
    clusters, groups, singles = table[s, S_CLUSTERS], table[s, S_GROUPS], table[s, S_SINGLES]
    base, logs = np.empty(count, np.float32), np.empty(max(groups, singles), np.float32)
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
        _score(w, h, s, COARSE, NONE, groups, logs, base, masses, before, rows, kind)
    logs[:singles] = np.float32(0.0)
    masses = f4(w, SINGLE_MASS)[h * count : (h + 1) * count]
    before = table[s, S_SINGLES_BEFORE]
    _score(w, h, s, FINE, clusters - singles, clusters, logs, base, masses, before, rows, kind)


@jit()
def _descend(w, h, wanted, everything):
    """Marks the groups to descend into; returns how many tokens may be retrieved."""
    count, groups, rules = w[GROUP], w[GROUPS], f8(w, RULES)[0]
    ranks, sizes, zones = f4(w, COARSE_RANK)[h], i4(w, COARSE_SIZE)[h], i4(w, COARSE_ZONE)[h]
    masses, z = f4(w, COARSE_MASS)[h * count : (h + 1) * count], f4(w, Z)[h]
    z[:] = f4(w, STEADY_LSE)[0, h * count : (h + 1) * count]
    _lse(masses, groups, z)
    _lse(f4(w, SINGLE_MASS)[h * count : (h + 1) * count], w[SINGLES], z)
    _ranks(masses, z, groups, ranks)
    most = np.int64(max(np.ceil(rules[DESCEND] * groups), rules[LEAST_GROUPS]))
    reached = _select(
        w, h, ranks, sizes, groups, 0.0, everything, most, NONE, 0.0, zones, RETRIEVED
    )
    left = 0.0
    for m in range(groups):
        if zones[m] == DROPPED:
            left += ranks[m]
    if left < rules[SURE] * count:
        for m in range(groups):
            zones[m] = RETRIEVED
        sharp = max(np.ceil(rules[SHARP_TOKENS] * everything), np.float64(2 * w[LEAST]))
        sharp = max(sharp, np.float64(wanted))
        return np.int64(min(rules[MOST], sharp))
    if not w[WHOLE] or w[SINGLES] + reached >= wanted:
        return wanted
    held = i8(w, BUCKET_TOKENS)[h]
    filled, edge = w[SINGLES], BUCKETS
    while edge > 0 and filled + held[edge - 1] < wanted:
        edge -= 1
        filled += held[edge]
    for m in range(groups):
        bucket = _bucket(ranks[m])
        if bucket >= edge:
            zones[m] = RETRIEVED
        elif bucket == edge - 1 and filled < wanted:
            zones[m] = RETRIEVED
            filled += sizes[m]
        else:
            zones[m] = DROPPED
    return everything


@jit()
def prepare(w):
    """Before all passes: queries times scale as float32, and the squares of their lengths."""
    q, norms, scale = f4(w, Q), f4(w, NORMS)[0], np.float32(f8(w, RULES)[0, SCALE])
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
    if w[TWO_LEVEL]:
        wanted = _descend(w, h, wanted, everything)
    for s in range(w[SEGMENTS]):
        starts, offsets = runs_of(w, h, s)
        groups, before = table[s, S_GROUPS], table[s, S_GROUPS_BEFORE]
        occupied += offsets[groups] + table[s, S_SINGLES]
        for m in range(groups):
            if w[TWO_LEVEL] and zones[before + m] == DROPPED:
                continue
            for c in range(offsets[m], offsets[m + 1]):
                places[n], clusters[n], sizes[n] = s, c, starts[c + 1] - starts[c]
                n += 1
    found[0] = n
    for s in range(w[SEGMENTS]):
        end = table[s, S_CLUSTERS]
        for c in range(end - table[s, S_SINGLES], end):
            places[n], clusters[n], sizes[n] = s, c, 1
            n += 1
    found[1], found[2], found[3], found[4] = n, wanted, occupied, everything


@jit()
def score_found(w, kind, task):
    """Pass 3: log masses of a part of the grouped candidates; neighbours are scored together."""
    h, part, count = task // w[PARTS], task % w[PARTS], w[GROUP]
    places, clusters, sizes = i4(w, SEGMENT)[h], i4(w, CLUSTER)[h], i4(w, SIZE)[h]
    n, logs_of = i8(w, FOUND)[h, 0], f4(w, LOGS)[0]
    at, end = n * part // w[PARTS], n * (part + 1) // w[PARTS]
    base, rows = np.empty(count, np.float32), np.empty((BLOCK, w[DIM]), np.float32)
    logs, known = np.empty(end - at, np.float32), np.int64(-1)
    masses = f4(w, FINE_MASS)[h * count : (h + 1) * count]
    while at < end:
        s, c, run = np.int64(places[at]), np.int64(clusters[at]), 1
        while at + run < end and places[at + run] == s and clusters[at + run] == c + run:
            run += 1
        if s != known:
            _bases(w, h, s, base)
            known = s
        for i in range(run):
            logs[i] = logs_of[sizes[at + i]]
        _score(w, h, s, FINE, c, c + run, logs, base, masses, at, rows, kind)
        at += run


@jit()
def _forget_retrieved(w, h):
    """Makes Z the mass of the steady and the estimation zone, and log masses shares of it.

    The retrieved clusters' masses were estimates and may have been far too high: what weighs
    little beside them need not weigh little.
    """
    count, n, groups = w[GROUP], i8(w, FOUND)[h, 1], w[GROUPS]
    masses, z, zones = f4(w, FINE_MASS)[h * count : (h + 1) * count], f4(w, Z)[h], i4(w, ZONE)[h]
    coarse = f4(w, COARSE_MASS)[h * count : (h + 1) * count]
    z[:] = f4(w, STEADY_LSE)[0, h * count : (h + 1) * count]
    for g in range(count):
        for i in range(n):
            if zones[i] != ESTIMATED:
                masses[g, i] = -np.inf
    _lse(masses, n, z)
    if w[TWO_LEVEL]:
        _lse(coarse, groups, z)
        _to_shares(coarse, z, groups)
    _to_shares(masses, z, n)


@jit()
def choose(w, h):
    """Pass 4: the zone of each candidate of one head."""
    count, groups, rules, found = w[GROUP], w[GROUPS], f8(w, RULES)[0], i8(w, FOUND)[h]
    masses, z = f4(w, FINE_MASS)[h * count : (h + 1) * count], f4(w, Z)[h]
    ranks, sizes, zones = f4(w, RANK)[h], i4(w, SIZE)[h], i4(w, ZONE)[h]
    singles, n = f4(w, SINGLE_MASS), found[1]
    z[:] = f4(w, STEADY_LSE)[0, h * count : (h + 1) * count]
    for g in range(count):
        for u in range(w[SINGLES]):
            masses[g, found[0] + u] = singles[h * count + g, u]
    left = 0.0
    if w[TWO_LEVEL]:
        coarse, descended = f4(w, COARSE_MASS)[h * count : (h + 1) * count], i4(w, COARSE_ZONE)[h]
        for m in range(groups):
            if descended[m] == RETRIEVED:
                for g in range(count):
                    coarse[g, m] = -np.inf
        _lse(coarse, groups, z)
        _lse(masses, n, z)
        left = _ranks(coarse, z, groups, f4(w, COARSE_RANK)[h])
    else:
        _lse(masses, n, z)
    left += _ranks(masses, z, n, ranks)
    if not w[SECOND_ORDER]:
        # Sizes do not rank.
        logs_of, plain = f4(w, LOGS)[0], np.full(count, -np.inf, np.float32)
        for g in range(count):
            for i in range(n):
                masses[g, i] -= logs_of[sizes[i]]
        _lse(masses, n, plain)
        _ranks(masses, plain, n, ranks)
        for g in range(count):
            for i in range(n):
                masses[g, i] += logs_of[sizes[i]]
    most = n
    if rules[SHARE_CLUSTERS] < np.inf:
        most = max(np.int64(1), np.int64(np.rint(rules[SHARE_CLUSTERS] * found[3])))
    for i in range(n):
        zones[i] = ESTIMATED if rules[SHARE_ESTIMATED] >= 1.0 else DROPPED
    if rules[SHARE_ESTIMATED] < 1.0:
        number = most + np.int64(np.rint(rules[SHARE_ESTIMATED] * found[3]))
        _select(w, h, ranks, sizes, n, 0.0, found[4], number, NONE, 0.0, zones, ESTIMATED)
    end = rules[EPSILON] * count
    i8(w, TOKENS)[0, h] = _select(
        w, h, ranks, sizes, n, left, found[2], most, w[FLOOR], end, zones, RETRIEVED
    )
    _forget_retrieved(w, h)
