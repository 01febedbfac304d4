"""Where a model computes and in what: the user's choice, or what the machine and the file say.

A GPU is used when PyTorch can drive it, its architecture is one the kernels are built for, and
Triton is there with a directory to keep compiled kernels in. With `--device cuda` anything less is
an error; with `auto` the CPU is used, and `device_note` says why where there is a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .amounts import told_apart
from .config import SessionConfig
from .errors import MemoryLimitError, ModelError, UsageError

OLDEST = (8, 0)
"""Compute capability from which on there is bfloat16 and asynchronous copying."""


def open_device(config: SessionConfig) -> torch.device:
    """The chosen device, its memory bounded by `--vram`; raises UsageError."""
    device = choose_device(config)
    if config.vram is not None and device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        if config.vram * 2**30 > total:
            has, _ = told_apart(total, config.vram * 2**30)
            raise UsageError(f"--vram is {config.vram:g} and the GPU has {has}; give less")
        # From now on whatever asks for more gets torch.OutOfMemoryError.
        torch.cuda.set_per_process_memory_fraction(config.vram * 2**30 / total, device)
    return device


def choose_device(config: SessionConfig) -> torch.device:
    """Raises UsageError when a GPU is asked for and none can be used."""
    problem = gpu_problem() if config.device != "cpu" else None
    if config.device == "cuda" and problem is not None:
        raise UsageError(
            f"--device is cuda and no usable NVIDIA GPU was found: {problem}; give cpu or auto"
        )
    if config.device == "auto":
        return torch.device("cuda" if problem is None else "cpu")
    return torch.device(config.device)


def gpu_bytes(config: SessionConfig) -> int | None:
    """Memory of the GPU that the model will be on; None when it will be on the CPU."""
    device = choose_device(config)
    return None if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[1])


def free_bytes(device: torch.device, gib: float | None) -> int:
    """What may still be taken of a GPU's memory, at most `gib` in all; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    free += held - torch.cuda.memory_allocated(device)
    if gib is not None:
        free = min(free, int(gib * 2**30) - torch.cuda.memory_allocated(device))
    return max(0, free)


@contextmanager
def device_errors() -> Iterator[None]:
    """What a GPU fails with becomes one line: MemoryLimitError, or ModelError when it is lost."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise MemoryLimitError(
            "the GPU's memory is full; give a smaller --batch-size, a larger --vram, --dtype "
            "bfloat16, a smaller model, or --device cpu"
        ) from None
    except torch.AcceleratorError as error:
        line = str(error).splitlines()[0]
        raise ModelError(
            f"the GPU stopped in the middle of its work ({line}); start again, or give --device cpu"
        ) from None


def device_note(config: SessionConfig) -> str | None:
    """What the user should know of the device that was chosen; None when there is nothing."""
    if config.device == "auto" and _gpu_there():
        problem = gpu_problem()
        return None if problem is None else f"the GPU is not used: {problem}"
    if config.vram is not None and choose_device(config).type == "cpu":
        return "vram has no effect: no GPU is used (--ram bounds what a CPU computes with)"
    return None


def gpu_problem() -> str | None:
    """Why no NVIDIA GPU can be used, for the middle of a sentence; None when one can."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return "this PyTorch was built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            # PyTorch says what is wrong with a driver (too old, say) in a warning.
            lines = str(said[0].message).splitlines() if said else []
            return lines[0].strip(" .") if lines else "no driver answers"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        name, version = torch.cuda.get_device_name(), ".".join(map(str, capability))
        return f"{name} has compute capability {version} and 8.0 is needed"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return _cache_problem()


def _cache_problem() -> str | None:
    """Why Triton cannot keep what it compiles."""
    home = os.environ.get("TRITON_HOME", str(Path.home()))
    place = Path(os.environ.get("TRITON_CACHE_DIR", Path(home) / ".triton" / "cache"))
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"Triton cannot write to {place}; set TRITON_CACHE_DIR to a folder that it can"


def _gpu_there() -> bool:
    """Whether the machine has an NVIDIA GPU with a driver, usable or not."""
    return torch.cuda.is_available() or Path("/proc/driver/nvidia/gpus").is_dir()


def choose_dtype(config: SessionConfig, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of weights and caches of a checkpoint in dtype `stored`.

    Products with quantised weights are fast in bfloat16 on a CPU, and 80 times slower in float32.
    """
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    if config.quant != "none" and device.type == "cpu":
        return torch.bfloat16
    return torch.float32 if (stored, device.type) == (torch.float16, "cpu") else stored


def device_name(device: torch.device) -> str:
    """The processor or GPU as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if not cpuinfo.is_file():
        return name
    lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    return next((x.partition(":")[2].strip() for x in lines if "model name" in x), name)
