"""Which entries are taken, from the highest rank down: `select` of the reference, compiled."""

from __future__ import annotations

import numpy as np

from .jit_numba import bits_of, jit
from .wave_attention import BUCKET_SHIFT, BUCKETS, LOWEST_BUCKET
from .wave_words_numba import BUCKET_MASS, BUCKET_NUMBER, BUCKET_TOKENS, f8, i8


@jit()
def bucket_of(rank):
    """`buckets` of the reference."""
    return np.int64(max((bits_of(rank) >> BUCKET_SHIFT) - LOWEST_BUCKET, 0))


@jit()
def select(w, h, ranks, sizes, n, mass, tokens, clusters, floor, epsilon, zone, value):
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
        bucket = bucket_of(ranks[i])
        held[bucket] += sizes[i]
        number[bucket] += 1
        masses[bucket] += np.float64(ranks[i]) * sizes[i]
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
        bucket = bucket_of(ranks[i])
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
