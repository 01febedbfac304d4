"""The scoring kernels of a decode step: log masses of both levels, ranks, histograms.

All run over (tiles, KV heads). The order of a step is in `wave_attention_triton`; the mathematics
in ARCHITECTURE.md ("The wave cache") and `wave_attention_reference`. Candidates are numbered per
KV head: the singles of all segments first, from `ucap` on the clusters of descended groups. There
is room for scap segments, mcap groups, ucap singles and kcap candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts_triton import (
    ONE,
    aligned,
    count_ranks,
    dot,
    find_run,
    finite,
    grow_from,
    grow_lse,
    load_query,
    load_rows,
    load_scales,
    log_mass,
    lse_of,
)
from .wave_attention import BUCKETS

INSIDE = tl.constexpr(0)
"""Words of a head's state: clusters of descended groups, ..."""
CHOSEN = tl.constexpr(1)
"""... descended groups, ..."""
WANTED = tl.constexpr(2)
"""... tokens to retrieve at most, ..."""
BELIEVED = tl.constexpr(3)
"""... whether what is left to estimation ends retrieval, ..."""
MASS = tl.constexpr(4)
"""... mass of all candidates and groups in units of ONE, ..."""
RUNS = tl.constexpr(5)
"""... clusters retrieved, ..."""
TOKENS = tl.constexpr(6)
"""... tokens in them, ..."""
SEEN = tl.constexpr(7)
"""... value sums read, ..."""
HELD = tl.constexpr(8)
"""... candidates that hold a token."""
STATE_WORDS = tl.constexpr(16)
_HIST = tl.constexpr(3 * BUCKETS)


@triton.jit
def _tile(
    q,
    mean,
    level,
    number,
    valid,
    sizes,
    scale,
    D: tl.constexpr,
    DP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALED: tl.constexpr,
    SECOND: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Scores and log masses [GP, N] of rows `number` [N] of a level; mean is the mean key's score.

    level: addresses of centroids, scales and spreads, scalars or [N].
    """
    centroids, scales, spreads = level
    dims, wide = tl.arange(0, DP), number.to(tl.int64)
    size: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    rows = load_rows(centroids + wide * (D * size), valid, dims, D, ELEMENT, aligned(D * size))
    scores = dot(q, tl.trans(rows), WIDE) * scale
    if SCALED:
        scores = scores * load_scales(scales + wide * 4, valid)[None, :]
    scores += mean
    if SECOND:
        wide_q = q.to(tl.float32)
        norms = tl.sum(wide_q * wide_q, 1) * (scale * scale)
        variance = norms[:, None] * load_scales(spreads + wide * 2, valid)[None, :]
    else:
        variance = tl.zeros_like(scores)
    return scores, log_mass(scores, tl.where(valid, sizes, 0).to(tl.float32)[None, :], variance)


@triton.jit
def first_kernel(
    q,
    rows,
    limits,
    mean_scores,
    group_mass,
    group_info,
    near_score,
    near_mass,
    near_info,
    first_lse,
    variances,
    hist,
    state,
    scale,
    mcap,
    kcap,
    scap,
    COLUMNS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    GP: tl.constexpr,
    DP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALED: tl.constexpr,
    TWO_LEVEL: tl.constexpr,
    SECOND: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log masses of all groups and singles, one segment a program; grid (scap, Hkv).

    first_lse [Hkv, G, 3 * scap]: log-sum-exp of the groups, of the singles, and of the singles'
    scores alone, per segment. variances [Hkv, scap]: of a group's logits, on the mean over the
    queries, summed over a segment's groups.
    """
    s, h = tl.program_id(0), tl.program_id(1)
    lanes, heads, dims = tl.arange(0, BLOCK), tl.arange(0, GP), tl.arange(0, DP)
    if s == 0:
        for start in range(0, 2 * _HIST, BLOCK):
            tl.store(
                hist + h * 2 * _HIST + start + lanes,
                tl.zeros([BLOCK], tl.int64),
                mask=start + lanes < 2 * _HIST,
            )
        words = tl.arange(0, STATE_WORDS)
        tl.store(state + h * STATE_WORDS + words, tl.zeros([STATE_WORDS], tl.int64))
    if s < tl.load(limits):
        row = rows + s * COLUMNS
        clusters, groups, singles = tl.load(row + 12), tl.load(row + 13), tl.load(row + 14)
        query = load_query(q, h, G, D, GP, DP)
        asking = (heads < G)[:, None]
        mean_key = tl.load(row + 10).to(tl.pointer_type(tl.float32)) + h * D + dims
        mean_key = tl.load(mean_key, mask=dims < D, other=0)
        mean = tl.sum(query.to(tl.float32) * mean_key[None, :], 1)[:, None] * scale
        tl.store(mean_scores + (h * G + heads)[:, None] * scap + s, mean, mask=asking)
        starts = tl.load(row + 8).to(tl.pointer_type(tl.int32)) + h * (clusters + 1)
        top, total = tl.full([GP], float("-inf"), tl.float32), tl.zeros([GP], tl.float32)
        offsets = tl.load(row + 9).to(tl.pointer_type(tl.int32)) + h * (groups + 1)
        before, first = tl.load(row + 16), h * groups
        spread = tl.zeros([BLOCK], tl.float32)
        size: tl.constexpr = ELEMENT.primitive_bitwidth // 8
        for start in range(0, groups, BLOCK):
            m = start + lanes
            valid = m < groups
            begin = tl.load(offsets + m, mask=valid, other=0)
            end = tl.load(offsets + m + 1, mask=valid, other=0)
            tokens = tl.load(starts + end, mask=valid, other=0)
            tokens -= tl.load(starts + begin, mask=valid, other=0)
            info = group_info + h * 4 * mcap + before + m
            tl.store(info, tl.zeros_like(begin) + s, mask=valid)
            tl.store(info + mcap, begin, mask=valid)
            tl.store(info + 2 * mcap, end - begin, mask=valid)
            tl.store(info + 3 * mcap, tokens, mask=valid)
            if TWO_LEVEL:
                level = (
                    tl.load(row + 4) + first * D * size,
                    tl.load(row + 6) + first * 4,
                    tl.load(row + 7) + first * 2,
                )
                _, masses = _tile(
                    query,
                    mean,
                    level,
                    m,
                    valid,
                    tokens,
                    scale,
                    D,
                    DP,
                    ELEMENT,
                    SCALED,
                    SECOND,
                    WIDE,
                )
                masses_at = group_mass + (h * G + heads)[:, None] * mcap + (before + m)[None, :]
                tl.store(masses_at, masses, mask=asking & valid[None, :])
                top, total = grow_lse(top, total, masses)
                if SECOND:
                    spread += load_scales(level[2] + m.to(tl.int64) * 2, valid)
        wide_q = query.to(tl.float32)
        norm = tl.sum(tl.sum(wide_q * wide_q, 1), 0) * (scale * scale) / G
        tl.store(variances + h * scap + s, tl.sum(spread, 0) * norm)
        sums = first_lse + (h * G + heads) * 3 * scap + s
        tl.store(sums, lse_of(top, total), mask=heads < G)

        top, total = tl.full([GP], float("-inf"), tl.float32), tl.zeros([GP], tl.float32)
        plain_top, plain = tl.full([GP], float("-inf"), tl.float32), tl.zeros([GP], tl.float32)
        first, before = h * clusters + clusters - singles, tl.load(row + 17)
        level = (
            tl.load(row + 0) + first * D * size,
            tl.load(row + 2) + first * 4,
            tl.load(row + 3) + first * 2,
        )
        for start in range(0, singles, BLOCK):
            u = start + lanes
            valid = u < singles
            c = (clusters - singles + u).to(tl.int32)
            sizes = tl.load(starts + c + 1, mask=valid, other=0)
            sizes -= tl.load(starts + c, mask=valid, other=0)
            scores, masses = _tile(
                query, mean, level, u, valid, sizes, scale, D, DP, ELEMENT, SCALED, SECOND, WIDE
            )
            info = near_info + h * 3 * kcap + before + u
            tl.store(info, tl.zeros_like(c) + s, mask=valid)
            tl.store(info + kcap, c, mask=valid)
            tl.store(info + 2 * kcap, sizes, mask=valid)
            place = (h * G + heads)[:, None] * kcap + (before + u)[None, :]
            tl.store(near_score + place, scores, mask=asking & valid[None, :])
            tl.store(near_mass + place, masses, mask=asking & valid[None, :])
            top, total = grow_lse(top, total, masses)
            held = tl.where((sizes > 0)[None, :], scores, float("-inf"))
            plain_top, plain = grow_lse(plain_top, plain, held)
        tl.store(sums + scap, lse_of(top, total), mask=heads < G)
        tl.store(sums + 2 * scap, lse_of(plain_top, plain), mask=heads < G)


@triton.jit
def rank_groups_kernel(
    limits,
    group_mass,
    group_info,
    group_rank,
    first_lse,
    near_lse,
    hist,
    mcap,
    scap,
    PARTS: tl.constexpr,
    STEADY: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each group's share of the mass, summed over the queries; grid (tiles of groups, Hkv).

    near_lse is `part_lse` [Hkv, G, PARTS], the steady zone's parts its first STEADY.
    """
    h, m = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    groups = tl.load(limits + 1)
    if tl.program_id(0) * BLOCK < groups:
        heads, valid = tl.arange(0, GP), m < groups
        top, total = tl.full([GP], float("-inf"), tl.float32), tl.zeros([GP], tl.float32)
        top, total = grow_from(top, total, near_lse + h * G * PARTS, STEADY, PARTS, G, GP)
        segments, first = tl.load(limits), first_lse + h * G * 3 * scap
        top, total = grow_from(top, total, first, segments, 3 * scap, G, GP)
        top, total = grow_from(top, total, first + scap, segments, 3 * scap, G, GP)
        z = finite(lse_of(top, total))
        there = (heads < G)[:, None] & valid[None, :]
        place = group_mass + (h * G + heads)[:, None] * mcap + m[None, :]
        masses = tl.load(place, mask=there, other=float("-inf"))
        ranks = tl.sum(tl.exp(masses - z[:, None]), 0)
        tl.store(group_rank + h * mcap + m, ranks, mask=valid)
        tokens = tl.load(group_info + h * 4 * mcap + 3 * mcap + m, mask=valid, other=0)
        count_ranks(hist + h * 2 * _HIST, ranks, ranks, tokens, valid)


@triton.jit
def near_kernel(
    q,
    rows,
    limits,
    mean_scores,
    group_mass,
    group_taken,
    chosen,
    near_score,
    near_mass,
    near_info,
    tile_lse,
    state,
    scale,
    mcap,
    kcap,
    ucap,
    scap,
    near_tiles,
    tiles,
    COLUMNS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    GP: tl.constexpr,
    DP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALED: tl.constexpr,
    SECOND: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log masses of the clusters of descended groups; grid (tiles, Hkv).

    Programs from near_tiles on only add up the groups that are left to estimation. tile_lse
    [Hkv, G, tiles + near_tiles]: log-sum-exp per program, then of the scores alone.
    """
    pid, h = tl.program_id(0), tl.program_id(1)
    heads, lanes = tl.arange(0, GP), tl.arange(0, BLOCK)
    top, total = tl.full([GP], float("-inf"), tl.float32), tl.zeros([GP], tl.float32)
    own = tile_lse + (h * G + heads) * (tiles + near_tiles) + pid
    inside = tl.load(state + h * STATE_WORDS + INSIDE)
    if pid >= near_tiles:
        m = (pid - near_tiles) * BLOCK + lanes
        if (pid - near_tiles) * BLOCK < tl.load(limits + 1):
            apart = m < tl.load(limits + 1)
            taken = tl.load(group_taken + h * mcap + m, mask=apart, other=1)
            there = (heads < G)[:, None] & (apart & (taken == 0))[None, :]
            place = group_mass + (h * G + heads)[:, None] * mcap + m[None, :]
            top, total = grow_lse(top, total, tl.load(place, mask=there, other=float("-inf")))
            tl.store(own, lse_of(top, total), mask=heads < G)
    elif pid * BLOCK < inside:
        i = pid * BLOCK + lanes
        valid = i < inside
        runs = tl.load(state + h * STATE_WORDS + CHOSEN).to(tl.int32)
        info = chosen + h * 3 * mcap
        run = find_run(info + 2 * mcap, runs, tl.minimum(i, inside - 1).to(tl.int32))
        begin = tl.load(info + 2 * mcap + run - 1, mask=run > 0, other=0)
        s = tl.load(info + run)
        c = tl.load(info + mcap + run) + i - begin
        row = rows + s.to(tl.int64) * COLUMNS
        clusters = tl.load(row + 12, mask=valid, other=0)
        starts = tl.load(row + 8, mask=valid, other=0) + (h * (clusters + 1) + c) * 4
        pointer = starts.to(tl.pointer_type(tl.int32))
        sizes = tl.load(pointer + 1, mask=valid, other=0) - tl.load(pointer, mask=valid, other=0)
        query = load_query(q, h, G, D, GP, DP)
        there = (heads < G)[:, None] & valid[None, :]
        place = mean_scores + (h * G + heads)[:, None] * scap + s[None, :]
        mean = tl.load(place, mask=there, other=0)
        level = (
            tl.load(row + 0, mask=valid, other=0),
            tl.load(row + 2, mask=valid, other=0),
            tl.load(row + 3, mask=valid, other=0),
        )
        scores, masses = _tile(
            query,
            mean,
            level,
            h * clusters + c,
            valid,
            sizes,
            scale,
            D,
            DP,
            ELEMENT,
            SCALED,
            SECOND,
            WIDE,
        )
        into = near_info + h * 3 * kcap + ucap + i
        tl.store(into, s, mask=valid)
        tl.store(into + kcap, c.to(tl.int32), mask=valid)
        tl.store(into + 2 * kcap, sizes, mask=valid)
        place = (h * G + heads)[:, None] * kcap + ucap + i[None, :]
        tl.store(near_score + place, scores, mask=there)
        tl.store(near_mass + place, masses, mask=there)
        top, total = grow_lse(top, total, masses)
        tl.store(own, lse_of(top, total), mask=heads < G)
        if not SECOND:
            top, total = tl.full([GP], float("-inf"), tl.float32), tl.zeros([GP], tl.float32)
            held = tl.where((valid & (sizes > 0))[None, :], scores, float("-inf"))
            top, total = grow_lse(top, total, held)
            tl.store(own + tiles, lse_of(top, total), mask=heads < G)


@triton.jit
def rank_near_kernel(
    limits,
    near_score,
    near_mass,
    near_info,
    near_rank,
    first_lse,
    tile_lse,
    steady_lse,
    hist,
    state,
    kcap,
    ucap,
    scap,
    near_tiles,
    tiles,
    PARTS: tl.constexpr,
    STEADY: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    TWO_LEVEL: tl.constexpr,
    SECOND: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Ranks of all candidates, and the mass of everything outside the steady zone.

    Grid (kcap / BLOCK, Hkv); TILE is the block of `near_kernel`.
    """
    pid, h = tl.program_id(0), tl.program_id(1)
    heads, p = tl.arange(0, GP), pid * BLOCK + tl.arange(0, BLOCK)
    inside = tl.load(state + h * STATE_WORDS + INSIDE)
    singles, segments = tl.load(limits + 2), tl.load(limits)
    valid = (p < singles) | ((p >= ucap) & (p < ucap + inside))
    if (pid == 0) | (tl.max(valid.to(tl.int32), 0) > 0):
        empty = tl.full([GP], float("-inf"), tl.float32)
        top, total = empty, tl.zeros([GP], tl.float32)
        steady = steady_lse + h * G * PARTS
        top, total = grow_from(top, total, steady, STEADY, PARTS, G, GP)
        near = lse_of(top, total)
        first = first_lse + h * G * 3 * scap + scap
        each = tiles + near_tiles
        parts = tile_lse + h * G * each
        top, total = grow_from(top, total, first, segments, 3 * scap, G, GP)
        top, total = grow_from(top, total, parts, tl.cdiv(inside, TILE), each, G, GP)
        if TWO_LEVEL:
            apart = tl.cdiv(tl.load(limits + 1), TILE)
            top, total = grow_from(top, total, parts + near_tiles, apart, each, G, GP)
        z = lse_of(top, total)
        if pid == 0:
            known = tl.where(heads < G, 1 - tl.exp(near - finite(z)), 0.0)
            mass = (tl.maximum(tl.sum(known), 0.0) * ONE).to(tl.int64)
            tl.store(state + h * STATE_WORDS + MASS, mass)
        there = (heads < G)[:, None] & valid[None, :]
        place = (h * G + heads)[:, None] * kcap + p[None, :]
        sizes = tl.load(near_info + h * 3 * kcap + 2 * kcap + p, mask=valid, other=0)
        valid &= sizes > 0
        if SECOND:
            masses = tl.load(near_mass + place, mask=there, other=float("-inf"))
        else:
            top, total = empty, tl.zeros([GP], tl.float32)
            top, total = grow_from(top, total, first + scap, segments, 3 * scap, G, GP)
            count = tl.cdiv(inside, TILE)
            top, total = grow_from(top, total, parts + tiles, count, each, G, GP)
            z = lse_of(top, total)
            masses = tl.load(near_score + place, mask=there, other=float("-inf"))
        shares = tl.sum(tl.exp(masses - finite(z)[:, None]), 0)
        ranks = shares
        if SECOND:
            ranks = shares / tl.maximum(sizes, 1).to(tl.float32)
        tl.store(near_rank + h * kcap + p, tl.where(valid, ranks, 0), mask=p < kcap)
        count_ranks(hist + h * 2 * _HIST + _HIST, ranks, shares, sizes, valid)
        held = tl.sum(valid.to(tl.int64))
        tl.atomic_add(state + h * STATE_WORDS + HELD, held)
