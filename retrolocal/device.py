"""Where a model computes and in what: the user's choice, or what the machine and the file say."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from .config import SessionConfig
from .errors import UsageError


def choose_device(config: SessionConfig) -> torch.device:
    """Raises UsageError when a GPU is asked for and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device is cuda and no usable NVIDIA GPU was found; give cpu or auto")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def gpu_bytes(config: SessionConfig) -> int | None:
    """Memory of the GPU that the model will be on; None when it will be on the CPU."""
    device = choose_device(config)
    return None if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[1])


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
