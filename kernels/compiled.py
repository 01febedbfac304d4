"""Whether there is compiled code for CPUs, and where it is kept.

numba makes it, plain PyTorch does without.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

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


def to_compile(cache: str) -> bool:
    """Whether the first step of such a cache takes long, and memory: its code has to be compiled.

    That of the index, which an earlier run has not left; there is little of everything else.
    """
    if cache == "dense" or not compiled():
        return False
    folder = kernel_folder()
    return folder is None or not any(folder.rglob("wave_attention_numba._step_*.nbi"))


@functools.cache
def kernel_folder() -> Path | None:
    """Where compiled code is kept; None when nothing can be written there.

    numba looks at the file of a function only, not at the constants and functions that it takes
    from other files: the folder's name is a hash of all of them.
    """
    # Not at import: transformers, run where this folder lies, takes it for a package of its own.
    from ..paths import cache_dir

    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    folder = cache_dir() / "kernels" / sources.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # As another would find it: root may write where nobody else may.
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        code_not_kept(error, folder)
        return None
    return folder


@dataclass(slots=True)
class Unkept:
    """The first reason why compiled code could not be kept, and whether it was told."""

    reason: str = ""
    told: bool = False


UNKEPT = Unkept()
"""Of this process."""


def code_not_kept(error: OSError, folder: Path | None = None) -> None:
    """Compiled code could not be written, or read back."""
    UNKEPT.reason = UNKEPT.reason or f"{folder or kernel_folder()} ({error.strerror or error})"


def unkept_note() -> str | None:
    """One line for whoever asks first once compiled code could not be kept; else None."""
    if UNKEPT.told or not UNKEPT.reason:
        return None
    UNKEPT.told = True
    return f"compiled code cannot be kept in {UNKEPT.reason}: every start compiles it again"
