"""Dual chunk attention (arXiv 2402.17463): three queries per token, one for each range of keys.

A query asks for the keys of its own chunk, of the chunk before, and of all earlier chunks in three
variants that differ in how they turned; keys are the same for all. Attention over the ranges is
joined by log-sum-exp. Knows nothing of angles or caches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor

from .attention import causal_attention, full_attention
from .merge import merge

Held = Callable[[range], tuple[Tensor, Tensor]]
"""K and V [Hkv, n, D] of those tokens at some positions that are attended here, in order."""


def ranges(tokens: int, length: int) -> tuple[range, range, range]:
    """Positions that the last of `tokens` tokens sees: its chunk, the one before, all earlier."""
    start = (tokens - 1) // length * length
    before = max(0, start - length)
    return range(start, tokens), range(before, start), range(before)


def pieces(first: int, stop: int, length: int) -> list[range]:
    """The positions first ... stop - 1, cut where a chunk ends."""
    cuts = [first, *range((first // length + 1) * length, stop, length), stop]
    return [range(start, end) for start, end in itertools.pairwise(cuts)]


def chunked_attention(
    q: Tensor, tokens: int, length: int, held: Held, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of the last Tq of `tokens` tokens, which are of one chunk and held, causally.

    q [3, Hq, Tq, D]. Returns out [Hq, Tq, D] and lse [Hq, Tq] as `causal_attention`.
    """
    own, *others = ranges(tokens, length)
    parts = [causal_attention(q[0], *held(own), scale=scale)]
    for kind, positions in enumerate(others, start=1):
        k, v = held(positions)
        if k.shape[1]:
            parts.append(full_attention(q[kind], k, v, scale=scale))
    return parts[0] if len(parts) == 1 else merge(*parts)
