"""Whether there is compiled code for CPUs: numba makes it, plain PyTorch does without."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def compiled() -> bool:
    """Whether numba is there; without it a CPU runs the reference."""
    return importlib.util.find_spec("numba") is not None


def one_token(*parts: Tensor) -> bool:
    """Whether these are of one token [..., 1, D] and as compiled code for decode steps takes them.

    That is: on a CPU, of one dtype of 16 bits, contiguous, with something in them.
    """
    first = parts[0]
    return (
        first.device.type == "cpu"
        and first.dim() > 1
        and first.shape[-2] == 1
        and first.numel() > 0
        and first.dtype in (torch.bfloat16, torch.float16)
        and all(part.dtype == first.dtype and part.is_contiguous() for part in parts)
        and compiled()
    )


def compiled_before() -> bool:
    """Whether code compiled in an earlier run is there: without it the first step takes long."""
    # Not at import: transformers, run where this folder lies, takes it for a package of its own.
    from ..paths import cache_dir

    return any((cache_dir() / "kernels").glob("*/**/*.nbi"))
