"""From which lengths on a wave cache clusters and reads through its index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def never() -> int:
    """A length that no context has."""
    return 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens from which on a context is worth clustering; asked only when it matters.

    Below `cluster` the cache is a dense one: no segment is cut. From `prefill` on several tokens
    at once go through the index too.
    """

    cluster: Callable[[], int] = lambda: 0
    prefill: Callable[[], int] = never
    stepped: int = 0
    """So many tokens at once, behind what was settled, go through the index one by one."""
    may_stay_dense: bool = False
    """Whether `cluster` is above 0: what has no segment yet is then called a dense cache."""
