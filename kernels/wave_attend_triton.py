"""The attending kernels of a decode step, one split-K family.

Each program reads a part of a zone and leaves `part_out` [Hkv, G, PARTS, D] (normalised) and
`part_lse` [Hkv, G, PARTS], float32: steady zone first, then retrieved clusters (slots and pinned
memory alike: only their addresses differ), then the estimated rest. `merge_kernel` joins them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .codecs import CUBIC, LINEAR
from .parts_triton import (
    aligned,
    dot,
    find_run,
    finite,
    grow_from,
    load_query,
    load_rows,
    load_scales,
    lse_of,
)
from .wave_score_triton import HELD, RUNS, SEEN, STATE_WORDS, TOKENS
from .wave_select_triton import ESTIMATED

_LINEAR = tl.constexpr(LINEAR)
_CUBIC = tl.constexpr(CUBIC)
EMPTY = tl.constexpr(float("-inf"))


@triton.jit
def _weigh(top, total, masses):
    """Weights of masses [GP, N] under the new top, and by what was so far shrinks."""
    new = tl.maximum(top, tl.max(masses, 1))
    safe = finite(new)
    weights, shrink = tl.exp(masses - safe[:, None]), tl.exp(top - safe)
    return new, total * shrink + tl.sum(weights, 1), weights, shrink


@triton.jit
def _leave(out, lse, acc, top, total, dims, heads, D: tl.constexpr, G: tl.constexpr):
    """Writes a part; `out` and `lse` are [GP, 1] and [GP] pointers."""
    acc = acc / tl.maximum(total, 1e-37)[:, None]
    tl.store(out + dims[None, :], acc, mask=(heads < G)[:, None] & (dims < D)[None, :])
    tl.store(lse, lse_of(top, total), mask=heads < G)


@triton.jit
def steady_kernel(
    q,
    k,
    v,
    count,
    part_out,
    part_lse,
    scale,
    head_stride,
    PARTS: tl.constexpr,
    STEADY: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    GP: tl.constexpr,
    DP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention to the steady zone; k, v rows [n, D] every `head_stride`, n = count[0].

    Grid (STEADY, Hkv).
    """
    pid, h = tl.program_id(0), tl.program_id(1)
    heads, dims, lanes = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, BLOCK)
    query, n = load_query(q, h, G, D, GP, DP), tl.load(count).to(tl.int32)
    top, total = tl.full([GP], EMPTY, tl.float32), tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DP], tl.float32)
    base = h.to(tl.int64) * head_stride
    for start in range(pid * BLOCK, n, STEADY * BLOCK):
        t = start + lanes
        place = base + t.to(tl.int64)[:, None] * D + dims[None, :]
        there = (t < n)[:, None] & (dims < D)[None, :]
        keys = tl.load(k + place, mask=there, other=0)
        scores = dot(query, tl.trans(keys), WIDE) * scale
        scores = tl.where((t < n)[None, :], scores, EMPTY)
        top, total, weights, shrink = _weigh(top, total, scores)
        values = tl.load(v + place, mask=there, other=0)
        acc = acc * shrink[:, None] + dot(weights.to(values.dtype), values, WIDE)
    part = (h * G + heads) * PARTS + pid
    out = part_out + part[:, None].to(tl.int64) * D
    _leave(out, part_lse + part, acc, top, total, dims, heads, D, G)


@triton.jit
def exact_kernel(
    q,
    turned,
    taken,
    addresses,
    near_score,
    state,
    part_out,
    part_lse,
    scale,
    kcap,
    PARTS: tl.constexpr,
    FIRST: tl.constexpr,
    EXACT: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    GP: tl.constexpr,
    DP: tl.constexpr,
    CODED: tl.constexpr,
    ELEMENT: tl.constexpr,
    ALIGN: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention to the retrieved clusters, decoded as they are loaded; grid (EXACT, Hkv).

    CODED is 0 (rows as they come), 8 or 4 bits; `turned` is q rotated for int4 (else q). A coded
    key is a difference to its centre, whose score is known. ALIGN: bytes that divide every
    cluster's address. GROUP: dimensions per scale of int4.
    """
    pid, h = tl.program_id(0), tl.program_id(1)
    heads, lanes = tl.arange(0, GP), tl.arange(0, BLOCK)
    own = state + h * STATE_WORDS
    runs, n = tl.load(own + RUNS).to(tl.int32), tl.load(own + TOKENS).to(tl.int32)
    top, total = tl.full([GP], EMPTY, tl.float32), tl.zeros([GP], tl.float32)
    W: tl.constexpr = DP // 2 if CODED == 4 else DP
    columns: tl.constexpr = D // 2 if CODED == 4 else D
    row_bytes: tl.constexpr = columns * (ELEMENT.primitive_bitwidth // 8)
    dims = tl.arange(0, W)
    if CODED == 4:
        # A byte holds two dimensions half a group apart: products are taken in two halves.
        low = dims // (GROUP // 2) * GROUP + dims % (GROUP // 2)
        places = turned + (h * G + heads)[:, None] * D + low[None, :]
        there = (heads < G)[:, None] & (dims < columns)[None, :]
        query = tl.load(places, mask=there, other=0)
        other_query = tl.load(places + GROUP // 2, mask=there, other=0)
        other = tl.zeros([GP, W], tl.float32)
    else:
        query = load_query(q, h, G, D, GP, DP)
    acc = tl.zeros([GP, W], tl.float32)
    scores_at = near_score + (h * G + heads)[:, None] * kcap
    info = taken + h * 3 * kcap
    for start in range(pid * BLOCK, n, EXACT * BLOCK):
        t = start + lanes
        valid = t < n
        run = find_run(info + 2 * kcap, runs, tl.minimum(t, n - 1))
        size = tl.load(info + kcap + run, mask=valid, other=0)
        inside = t - (tl.load(info + 2 * kcap + run, mask=valid, other=0) - size)
        base = tl.load(addresses + h * kcap + run, mask=valid, other=0)
        keys_at = base + inside * row_bytes
        values_at = keys_at + size * row_bytes
        keys = load_rows(keys_at, valid, dims, columns, ELEMENT, ALIGN)
        values = load_rows(values_at, valid, dims, columns, ELEMENT, ALIGN)
        if CODED == 0:
            scores = dot(query, tl.trans(keys), WIDE) * scale
        else:
            scales_at = base + 2 * size * row_bytes
            if CODED == 8:
                key_scales = load_scales(scales_at + inside * 4, valid)
                value_scales = load_scales(scales_at + inside * 4 + 2, valid)
                scores = dot(query, tl.trans(keys), WIDE) * (key_scales * scale)[None, :]
            else:
                parts: tl.constexpr = D // GROUP
                scales_at += inside * (4 * parts)
                part = (scales_at[:, None] + 2 * (dims // (GROUP // 2))[None, :]).to(
                    tl.pointer_type(tl.bfloat16)
                )
                filled = valid[:, None] & (dims < columns)[None, :]
                factors = tl.load(part, mask=filled, other=0).to(tl.float32)
                x = (keys & 15).to(tl.float32) - 7.5
                first = (x * (_LINEAR + _CUBIC * x * x) * factors).to(query.dtype)
                x = (keys >> 4).to(tl.float32) - 7.5
                second = (x * (_LINEAR + _CUBIC * x * x) * factors).to(query.dtype)
                scores = dot(query, tl.trans(first), WIDE)
                scores = (scores + dot(other_query, tl.trans(second), WIDE)) * scale
                factors = tl.load(part + parts, mask=filled, other=0).to(tl.float32)
            p = tl.load(info + run, mask=valid, other=0)
            known = (heads < G)[:, None] & valid[None, :]
            scores += tl.load(scores_at + p[None, :], mask=known, other=0)
        scores = tl.where(valid[None, :], scores, EMPTY)
        top, total, weights, shrink = _weigh(top, total, scores)
        acc = acc * shrink[:, None]
        if CODED == 0:
            acc += dot(weights.to(values.dtype), values, WIDE)
        elif CODED == 8:
            acc += dot((weights * value_scales[None, :]).to(query.dtype), values, WIDE)
        else:
            weights = weights.to(query.dtype)
            x = (values & 15).to(tl.float32) - 7.5
            x = (x * (_LINEAR + _CUBIC * x * x) * factors).to(query.dtype)
            acc += dot(weights, x, WIDE)
            x = (values >> 4).to(tl.float32) - 7.5
            x = (x * (_LINEAR + _CUBIC * x * x) * factors).to(query.dtype)
            other = other * shrink[:, None] + dot(weights, x, WIDE)
    number = (h * G + heads) * PARTS + FIRST + pid
    out = part_out + number[:, None].to(tl.int64) * D
    if CODED == 4:
        share = tl.maximum(total, 1e-37)[:, None]
        there = (heads < G)[:, None] & (dims < columns)[None, :]
        tl.store(out + low[None, :], acc / share, mask=there)
        tl.store(out + low[None, :] + GROUP // 2, other / share, mask=there)
        tl.store(part_lse + number, lse_of(top, total), mask=heads < G)
    else:
        _leave(out, part_lse + number, acc, top, total, dims, heads, D, G)


@triton.jit
def _estimate(
    acc,
    top,
    total,
    masses,
    known,
    sizes,
    valid,
    sums_at,
    scales_at,
    least,
    dims,
    D: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALED: tl.constexpr,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Takes up clusters [N] by their value sums, where a weight beside `known` [GP] counts."""
    top, total, weights, shrink = _weigh(top, total, masses)
    seen = valid & (tl.max(tl.exp(masses - known[:, None]), 0) > least)
    size: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    values = load_rows(sums_at, seen, dims, D, ELEMENT, aligned(D * size))
    weights = tl.where(seen[None, :], weights / tl.maximum(sizes, 1).to(tl.float32)[None, :], 0)
    if SCALED:
        weights *= load_scales(scales_at, seen)[None, :]
    acc = acc * shrink[:, None] + dot(weights.to(HALF), values, WIDE)
    return acc, top, total, tl.sum(seen.to(tl.int64))


@triton.jit
def estimate_kernel(
    rows,
    limits,
    group_mass,
    group_info,
    group_taken,
    near_mass,
    near_info,
    near_zone,
    state,
    part_out,
    part_lse,
    negligible,
    mcap,
    kcap,
    ucap,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    KNOWN: tl.constexpr,
    ESTIMATES: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    GP: tl.constexpr,
    DP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALED: tl.constexpr,
    HALF: tl.constexpr,
    TWO_LEVEL: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Everything that is estimated: candidates that were not retrieved, then groups left apart.

    The first KNOWN parts are there already. Value sums of what weighs less beside them than
    `negligible` over the number of clusters are not read. HALF is the type weights are rounded to.
    Grid (ESTIMATES, Hkv).
    """
    pid, h = tl.program_id(0), tl.program_id(1)
    heads, dims, lanes = tl.arange(0, GP), tl.arange(0, DP), tl.arange(0, BLOCK)
    own = state + h * STATE_WORDS
    inside, singles = tl.load(own), tl.load(limits + 2)
    size: tl.constexpr = ELEMENT.primitive_bitwidth // 8
    least = negligible / tl.maximum(tl.load(limits + 3), 1).to(tl.float32)
    top, total = tl.full([GP], EMPTY, tl.float32), tl.zeros([GP], tl.float32)
    top, total = grow_from(top, total, part_lse + h * G * PARTS, KNOWN, PARTS, G, GP)
    known = finite(lse_of(top, total))
    top, total = tl.full([GP], EMPTY, tl.float32), tl.zeros([GP], tl.float32)
    acc, seen = tl.zeros([GP, DP], tl.float32), inside * 0
    for start in range(pid * BLOCK, inside + singles, ESTIMATES * BLOCK):
        j = start + lanes
        valid = j < inside + singles
        p = tl.where(j < inside, ucap + j, j - inside)
        valid &= tl.load(near_zone + h * kcap + p, mask=valid, other=0) == ESTIMATED
        there = (heads < G)[:, None] & valid[None, :]
        masses = near_mass + (h * G + heads)[:, None] * kcap + p[None, :]
        masses = tl.load(masses, mask=there, other=EMPTY)
        info = near_info + h * 3 * kcap + p
        row = rows + tl.load(info, mask=valid, other=0).to(tl.int64) * COLUMNS
        number = h * tl.load(row + 12, mask=valid, other=0)
        number += tl.load(info + kcap, mask=valid, other=0)
        sizes = tl.load(info + 2 * kcap, mask=valid, other=0)
        sums = tl.load(row + 1, mask=valid, other=0) + number * (D * size)
        scales = tl.load(row + 2, mask=valid, other=0) + number * 4 + 2
        acc, top, total, read = _estimate(
            acc, top, total, masses, known, sizes, valid, sums, scales, least, dims,
            D, ELEMENT, SCALED, HALF, WIDE,
        )  # fmt: skip
        seen += read
    if TWO_LEVEL:
        groups = tl.load(limits + 1)
        for start in range(pid * BLOCK, groups, ESTIMATES * BLOCK):
            m = start + lanes
            valid = m < groups
            valid &= tl.load(group_taken + h * mcap + m, mask=valid, other=1) == 0
            there = (heads < G)[:, None] & valid[None, :]
            masses = group_mass + (h * G + heads)[:, None] * mcap + m[None, :]
            masses = tl.load(masses, mask=there, other=EMPTY)
            info = group_info + h * 4 * mcap + m
            row = rows + tl.load(info, mask=valid, other=0).to(tl.int64) * COLUMNS
            number = h * tl.load(row + 13, mask=valid, other=0)
            number += m - tl.load(row + 16, mask=valid, other=0)
            sizes = tl.load(info + 3 * mcap, mask=valid, other=0)
            sums = tl.load(row + 5, mask=valid, other=0) + number * (D * size)
            scales = tl.load(row + 6, mask=valid, other=0) + number * 4 + 2
            acc, top, total, read = _estimate(
                acc, top, total, masses, known, sizes, valid, sums, scales, least, dims,
                D, ELEMENT, SCALED, HALF, WIDE,
            )  # fmt: skip
            seen += read
    tl.atomic_add(own + SEEN, seen)
    number = (h * G + heads) * PARTS + KNOWN + pid
    out = part_out + number[:, None].to(tl.int64) * D
    _leave(out, part_lse + number, acc, top, total, dims, heads, D, G)


@triton.jit
def merge_kernel(
    part_out,
    part_lse,
    limits,
    state,
    out,
    lse_exact,
    mass_exact,
    tokens,
    read,
    PARTS: tl.constexpr,
    KNOWN: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    TWO_LEVEL: tl.constexpr,
    TOKEN_BYTES: tl.constexpr,
    ROW_BYTES: tl.constexpr,
    SUM_BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Joins the parts of a query head (`merge.merge`) and says what was read; grid (G, Hkv)."""
    g, h = tl.program_id(0), tl.program_id(1)
    head, dims, lanes = h * G + g, tl.arange(0, DP), tl.arange(0, BLOCK)
    own = part_lse + head * PARTS
    top, exact_top = float("-inf"), float("-inf")
    for start in range(0, PARTS, BLOCK):
        masses = tl.load(own + start + lanes, mask=start + lanes < PARTS, other=EMPTY)
        top = tl.maximum(top, tl.max(masses))
        exact_top = tl.maximum(exact_top, tl.max(tl.where(start + lanes < KNOWN, masses, EMPTY)))
    top, exact_top = finite(top), finite(exact_top)
    total, exact, acc = 0.0, 0.0, tl.zeros([DP], tl.float32)
    for start in range(0, PARTS, BLOCK):
        part = start + lanes
        masses = tl.load(own + part, mask=part < PARTS, other=EMPTY)
        weights = tl.exp(masses - top)
        total += tl.sum(weights)
        exact += tl.sum(tl.where(part < KNOWN, tl.exp(masses - exact_top), 0))
        place = part_out + (head * PARTS + part).to(tl.int64)[:, None] * D + dims[None, :]
        there = (weights > 0)[:, None] & (dims < D)[None, :]
        acc += tl.sum(tl.load(place, mask=there, other=0) * weights[:, None], 0)
    tl.store(out + head * D + dims, acc / tl.maximum(total, 1e-37), mask=dims < D)
    lse = tl.where(exact > 0, exact_top + tl.log(tl.maximum(exact, 1e-37)), EMPTY)
    tl.store(lse_exact + head, lse)
    tl.store(mass_exact + head, tl.exp(lse - top - tl.log(tl.maximum(total, 1e-37))))
    if g == 0:
        words = state + h * STATE_WORDS
        retrieved = tl.load(words + TOKENS)
        scored = tl.load(words + HELD)
        if TWO_LEVEL:
            scored += tl.load(limits + 1)
        tl.store(tokens + h, retrieved)
        tl.store(
            read + h,
            retrieved * TOKEN_BYTES + scored * ROW_BYTES + tl.load(words + SEEN) * SUM_BYTES,
        )
