"""Memory that was allocated for a moment goes back to the system.

glibc keeps what is freed between two allocations that live on. While a long text is read, every
chunk leaves small tensors that stay (the index, the clusters) among large ones that do not, so the
process grew by as much again as the text takes (PERFORMANCE.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Free pages of the heap, wherever they lie; some 15 ms. Nothing to do without glibc."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """malloc_trim(3), which keeps so many bytes at the heap's end."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found
