"""The choosing kernels of a decode step: which groups are descended into, which clusters retrieved.

One program per KV head. A histogram of ranks says in which bucket the choice ends
(`wave_attention.select` has the rules); one pass in order settles that bucket and writes what was
chosen down as a list. Nothing leaves the device, and no float is summed in an order that varies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts_triton import ONE, bucket_of
from .wave_attention import BUCKETS
from .wave_score_triton import (
    BELIEVED,
    CHOSEN,
    HELD,
    INSIDE,
    MASS,
    RUNS,
    STATE_WORDS,
    TOKENS,
    WANTED,
)

DROPPED = tl.constexpr(0)
ESTIMATED = tl.constexpr(1)
RETRIEVED = tl.constexpr(2)
_BUCKETS = tl.constexpr(BUCKETS)
_LANES = tl.constexpr(1024)
ENDLESS = tl.constexpr(1 << 62)


@triton.jit
def _descending(hist):
    """Sums [LANES] int64 over all buckets from the highest down: numbers, tokens, masses."""
    lanes = tl.arange(0, _LANES)
    there = lanes < _BUCKETS
    place = hist + (_BUCKETS - 1 - lanes)
    numbers = tl.cumsum(tl.load(place, mask=there, other=0), 0)
    tokens = tl.cumsum(tl.load(place + _BUCKETS, mask=there, other=0), 0)
    masses = tl.cumsum(tl.load(place + 2 * _BUCKETS, mask=there, other=0), 0)
    return numbers, tokens, masses


@triton.jit
def _cut(sums, wanted):
    """The bucket in which a sum reaches `wanted` (-1: in none), and what is still wanted there."""
    lanes = tl.arange(0, _LANES)
    before = (sums < wanted) & (lanes < _BUCKETS)
    full = tl.sum(before.to(tl.int32))
    return _BUCKETS - 1 - full, wanted - tl.max(tl.where(before, sums, 0))


@triton.jit
def descend_kernel(
    limits,
    group_rank,
    group_info,
    group_taken,
    chosen,
    variances,
    hist,
    state,
    sure,
    frozen,
    calm,
    flat,
    mcap,
    scap,
    G: tl.constexpr,
    TWO_LEVEL: tl.constexpr,
    SURE: tl.constexpr,
    FLAT: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which groups are descended into; grid (Hkv,).

    Writes group_taken int8 [Hkv, mcap], chosen int32 [Hkv, 3, mcap] (segment, first cluster and
    the clusters of all chosen so far), and the state's INSIDE, CHOSEN, WANTED and BELIEVED.
    """
    h, lanes = tl.program_id(0), tl.arange(0, BLOCK)
    groups, singles = tl.load(limits + 1), tl.load(limits + 2)
    wanted, believed = tl.load(limits + 6), tl.load(limits + 0) * 0 + 1
    bucket, rest, by_tokens = -1, groups * 0, groups < 0
    own = state + h * STATE_WORDS
    if TWO_LEVEL:
        numbers, tokens, masses = _descending(hist + h * 6 * _BUCKETS)
        few, variance = tl.load(limits + 4), tl.zeros([BLOCK], tl.float32)
        if SURE or FLAT:
            segments = tl.load(limits)
            for start in range(0, segments, BLOCK):
                s = start + lanes
                variance += tl.load(variances + h * scap + s, mask=s < segments, other=0)
        varied = tl.sum(variance, 0)
        if FLAT:
            if varied < flat * groups:
                few, wanted = tl.load(limits + 8), tl.load(limits + 9)
        bucket, rest = _cut(numbers, few)
        if SURE or WHOLE:
            edge, mass, held = groups * 0, groups * 0, groups * 0
            for start in range(0, groups, BLOCK):
                m = start + lanes
                ranks = tl.load(group_rank + h * mcap + m, mask=m < groups, other=0)
                size = tl.load(group_info + (h * 4 + 3) * mcap + m, mask=m < groups, other=0)
                found = bucket_of(ranks)
                at = ((found == bucket) & (m < groups)).to(tl.int64)
                inside = tl.cumsum(at, 0) - at + edge < rest
                taken = (m < groups) & ((found > bucket) | ((at > 0) & inside))
                mass += tl.sum(tl.where(taken, (ranks * ONE).to(tl.int64), 0))
                held += tl.sum(tl.where(taken, size, 0).to(tl.int64))
                edge += tl.sum(at)
            if SURE:
                left = (tl.max(masses) - mass).to(tl.float32) / ONE
                least = tl.where(varied >= frozen * groups, sure, calm)
                if left < least * G:
                    wanted, believed = tl.maximum(wanted, tl.load(limits + 7)), believed * 0
                    bucket, rest = _cut(numbers, tl.maximum(few, tl.load(limits + 5)))
            if WHOLE:
                if singles + held < wanted:
                    bucket, rest = _cut(tokens, wanted - singles)
                    by_tokens = groups >= 0
                    wanted = wanted * 0 + ENDLESS
    edge, place, clusters = groups * 0, groups * 0, groups * 0
    for start in range(0, groups, BLOCK):
        m = start + lanes
        valid = m < groups
        info = group_info + h * 4 * mcap + m
        count = tl.load(info + 2 * mcap, mask=valid, other=0)
        taken = valid
        if TWO_LEVEL:
            found = bucket_of(tl.load(group_rank + h * mcap + m, mask=valid, other=0))
            at = (found == bucket) & valid
            size = tl.load(info + 3 * mcap, mask=valid, other=0).to(tl.int64)
            metric = tl.where(at, tl.where(by_tokens, size, 1), 0).to(tl.int64)
            taken = valid & (
                (found > bucket) | (at & (tl.cumsum(metric, 0) - metric + edge < rest))
            )
            edge += tl.sum(metric)
            tl.store(group_taken + h * mcap + m, taken.to(tl.int8), mask=valid)
        # A group without clusters would make a run without end: it is not listed.
        listed = (taken & (count > 0)).to(tl.int64)
        own_count = tl.where(listed > 0, count, 0).to(tl.int64)
        into = chosen + h * 3 * mcap + place + tl.cumsum(listed, 0) - 1
        tl.store(into, tl.load(info, mask=valid, other=0), mask=listed > 0)
        tl.store(into + mcap, tl.load(info + mcap, mask=valid, other=0), mask=listed > 0)
        prefix = clusters + tl.cumsum(own_count, 0)
        tl.store(into + 2 * mcap, prefix.to(tl.int32), mask=listed > 0)
        place += tl.sum(listed)
        clusters += tl.sum(own_count)
    tl.store(own + INSIDE, clusters)
    tl.store(own + CHOSEN, place)
    tl.store(own + WANTED, wanted)
    tl.store(own + BELIEVED, believed)


@triton.jit
def retrieve_kernel(
    rows,
    limits,
    near_rank,
    near_info,
    near_zone,
    taken,
    addresses,
    places,
    asked,
    counts,
    hist,
    state,
    shares,
    epsilon,
    floor,
    kcap,
    ucap,
    asked_cap,
    COLUMNS: tl.constexpr,
    G: tl.constexpr,
    TOKEN_BYTES: tl.constexpr,
    COUNTED: tl.constexpr,
    PARTLY: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Which candidates are retrieved, and where each lies; grid (Hkv,).

    shares float64 [2]: of the clusters to retrieve (COUNTED), and to estimate besides (PARTLY).
    With SLOTS, places int64 [keys] is the slot map: the address of a cluster's slot in the block
    cache, 0 for none. Writes near_zone int8 [Hkv, kcap]; taken int32 [Hkv, 3, kcap]
    (candidate, tokens, and the tokens of all taken so far) with its addresses int64 [Hkv, kcap];
    asked int64 [Hkv, asked_cap], the keys of all taken (-1 - key for one
    that had a slot), as many as there
    is room for; counts int64 [Hkv, 3], clusters looked up and found, summed
    over steps, and how many `asked` lists; the state's
    RUNS and TOKENS.
    """
    h, lanes = tl.program_id(0), tl.arange(0, BLOCK)
    own = state + h * STATE_WORDS
    inside, singles = tl.load(own + INSIDE), tl.load(limits + 2)
    wanted, held, mass = tl.load(own + WANTED), tl.load(own + HELD), tl.load(own + MASS)
    numbers, tokens, masses = _descending(hist + h * 6 * _BUCKETS + 3 * _BUCKETS)
    most = wanted * 0 + ENDLESS
    if COUNTED:
        share = tl.load(shares) * held.to(tl.float64)
        most = tl.maximum((share + 0.5).to(tl.int64), 1)
    steps = tl.arange(0, _LANES)
    there = steps < _BUCKETS
    fits = there & (tokens <= wanted) & (numbers <= most)
    full = tl.sum(fits.to(tl.int32))
    room = wanted - tl.max(tl.where(fits, tokens, 0))
    slots = most - tl.max(tl.where(fits, numbers, 0))
    limit = epsilon * G * ONE
    if (epsilon > 0) & (tl.load(own + BELIEVED) > 0):
        enough = there & (numbers >= floor) & ((mass - masses).to(tl.float32) < limit)
        stop = tl.min(tl.where(enough, steps, _LANES))
        if stop < full:
            full, room = stop + 1, room * 0 - 1
        if (floor == 0) & (mass.to(tl.float32) < limit):
            full, room = full * 0 - 1, room * 0 - 1
    bucket = _BUCKETS - 1 - full
    last, further = -1, most
    if PARTLY:
        estimated = (tl.load(shares + 1) * held.to(tl.float64) + 0.5).to(tl.int64)
        last, further = _cut(numbers, tl.maximum(most + estimated, 0))
    at_number, at_tokens, at_last = held * 0, held * 0, held * 0
    runs, length, hits = held * 0, held * 0, held * 0
    for start in range(0, inside + singles, BLOCK):
        j = start + lanes
        p = tl.where(j < inside, ucap + j, j - inside)
        valid = j < inside + singles
        info = near_info + h * 3 * kcap + p
        size = tl.load(info + 2 * kcap, mask=valid, other=0).to(tl.int64)
        valid &= size > 0
        found = bucket_of(tl.load(near_rank + h * kcap + p, mask=valid, other=0))
        at = (valid & (found == bucket)).to(tl.int64)
        number = at_number + tl.cumsum(at, 0)
        sizes = at_tokens + tl.cumsum(at * size, 0)
        chosen = valid & ((found > bucket) | ((at > 0) & (number <= slots) & (sizes <= room)))
        at_number += tl.sum(at)
        at_tokens += tl.sum(at * size)
        kept = valid
        if PARTLY:
            edge = (valid & (found == last)).to(tl.int64)
            kept = valid & (
                (found > last) | ((edge > 0) & (at_last + tl.cumsum(edge, 0) <= further))
            )
            at_last += tl.sum(edge)
        zone = tl.where(chosen, RETRIEVED, tl.where(kept, ESTIMATED, DROPPED))
        tl.store(near_zone + h * kcap + p, zone.to(tl.int8), mask=j < inside + singles)

        one = chosen.to(tl.int64)
        into = taken + h * 3 * kcap + runs + tl.cumsum(one, 0) - 1
        prefix = length + tl.cumsum(one * size, 0)
        tl.store(into, p.to(tl.int32), mask=chosen)
        tl.store(into + kcap, size.to(tl.int32), mask=chosen)
        tl.store(into + 2 * kcap, prefix.to(tl.int32), mask=chosen)
        s = tl.load(info, mask=chosen, other=0).to(tl.int64)
        c = tl.load(info + kcap, mask=chosen, other=0).to(tl.int64)
        row = rows + s * COLUMNS
        clusters = tl.load(row + 12, mask=chosen, other=0)
        starts = tl.load(row + 8, mask=chosen, other=0) + (h * (clusters + 1) + c) * 4
        begin = tl.load(starts.to(tl.pointer_type(tl.int32)), mask=chosen, other=0).to(tl.int64)
        begin += h * tl.load(row + 15, mask=chosen, other=0)
        address = tl.load(row + 11, mask=chosen, other=0) + begin * TOKEN_BYTES
        if SLOTS:
            key = tl.load(row + 18, mask=chosen, other=0) * tl.num_programs(0) + h * clusters + c
            slot = tl.load(places + key, mask=chosen, other=0)
            hit = chosen & (slot != 0)
            address = tl.where(hit, slot, address)
            to = runs + tl.cumsum(one, 0) - 1
            listed = chosen & (to < asked_cap)
            tl.store(asked + h * asked_cap + to, tl.where(hit, -1 - key, key), mask=listed)
            hits += tl.sum(hit.to(tl.int64))
        tl.store(addresses + h * kcap + runs + tl.cumsum(one, 0) - 1, address, mask=chosen)
        runs += tl.sum(one)
        length += tl.sum(one * size)
    tl.store(own + RUNS, runs)
    tl.store(own + TOKENS, length)
    if SLOTS:
        tl.store(counts + h * 3, tl.load(counts + h * 3) + runs)
        tl.store(counts + h * 3 + 1, tl.load(counts + h * 3 + 1) + hits)
        tl.store(counts + h * 3 + 2, tl.minimum(runs, asked_cap))
