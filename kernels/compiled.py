"""Whether there is compiled code for CPUs: numba makes it, plain PyTorch does without."""

from __future__ import annotations

import functools
import importlib.util

from ..paths import cache_dir


@functools.cache
def compiled() -> bool:
    """Whether numba is there; without it a CPU runs the reference."""
    return importlib.util.find_spec("numba") is not None


def compiled_before() -> bool:
    """Whether code compiled in an earlier run is there: without it the first step takes long."""
    return any((cache_dir() / "kernels").glob("*/**/*.nbi"))
