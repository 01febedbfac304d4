"""The choosing passes of a compiled decode step: groups to descend into, clusters to retrieve."""

from __future__ import annotations

import numpy as np

from .jit_numba import bits_of, exp, jit
from .wave_attention import BUCKET_SHIFT, BUCKETS, LOWEST_BUCKET
from .wave_words_numba import (
    BUCKET_MASS,
    BUCKET_NUMBER,
    BUCKET_TOKENS,
    CLUSTER,
    COARSE_MASS,
    COARSE_RANK,
    COARSE_SIZE,
    COARSE_ZONE,
    DESCEND,
    DROPPED,
    EPSILON,
    ESTIMATED,
    FINE_MASS,
    FLOOR,
    FOUND,
    GROUP,
    GROUPS,
    LEAST,
    LEAST_GROUPS,
    LOGS,
    MOST,
    NONE,
    PART_MASS,
    PART_TOP,
    PARTS,
    RANK,
    RETRIEVED,
    RULES,
    S_CLUSTERS,
    S_GROUPS,
    S_GROUPS_BEFORE,
    S_SINGLES,
    S_TOKENS,
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
    Z,
    f4,
    f8,
    i4,
    i8,
    runs_of,
)


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
def _descend(w, h, wanted, everything):
    """Marks the groups to descend into; returns how many tokens may be retrieved."""
    count, groups, rules, found = w[GROUP], w[GROUPS], f8(w, RULES)[0], i8(w, FOUND)[h]
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
    found[5] = left < rules[SURE] * count
    if found[5]:
        more = max(np.ceil(rules[SHARP_DESCEND] * groups), np.float64(most))
        _select(
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
    end = 0.0 if found[5] else rules[EPSILON] * count
    i8(w, TOKENS)[0, h] = _select(
        w, h, ranks, sizes, n, left, found[2], most, w[FLOOR], end, zones, RETRIEVED
    )
    _forget_retrieved(w, h)
