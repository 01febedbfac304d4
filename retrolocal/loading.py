"""A model folder to a decoder, quantised when that is asked for.

Quantised weights are made once and kept in the user's cache directory, named after the digests of
the weight files and everything that changes them; the next start maps that file. Without room or a
writable cache directory they are made again each time (`retrolocal doctor` says so).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

from .config import Quant
from .errors import WeightsError
from .library import file_digests
from .models.checkpoint import checkpoint_bytes, read_checkpoint
from .models.config import ModelConfig
from .models.decoder import Decoder
from .models.quantised import weight_bytes
from .models.quantised_file import FORMAT, read_quantised, write_quantised
from .models.weights import load_decoder
from .paths import disk_free, quantised_dir

MARGIN = 1 << 30
"""Bytes that are left free on the disk."""


def open_decoder(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quant: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decoder:
    """The decoder with its weights; `progress` as in `load_decoder`. Raises WeightsError."""
    if quant == "none":
        return load_decoder(folder, config, dtype=dtype, device=device, progress=progress)
    file = quantised_file(folder, dtype, quant)
    if file.is_file():
        # A file that is damaged is made again.
        with contextlib.suppress(WeightsError):
            return _kept(file, folder, config, quant, dtype, device, progress)
    decoder = load_decoder(
        folder, config, dtype=dtype, device=device, quant=quant, progress=progress
    )
    needed = weight_bytes(config, dtype, quant)[0] + MARGIN
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if disk_free(file.parent) < needed:
            return decoder
        write_quantised(decoder, file)
    except OSError:
        return decoder
    del decoder
    return read_quantised(file, config, quant, dtype=dtype, device=device)


def quantised_file(folder: Path, dtype: torch.dtype, quant: str) -> Path:
    """Where the quantised weights of `folder` are kept."""
    facts = {
        "format": FORMAT,
        "weights": weights_identity(folder, quant),
        "dtype": str(dtype).removeprefix("torch."),
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    return quantised_dir() / f"{name}.safetensors"


def quantised_copies(folder: Path) -> set[Path]:
    """All quantised weights of `folder` that are kept. Raises ModelError for damaged weights."""
    names = (
        quantised_file(folder, dtype, quant)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for quant in get_args(Quant)
        if quant != "none"
    )
    return {name for name in names if name.is_file()}


def weights_identity(folder: Path, quant: str) -> dict[str, str]:
    """What tells these weights from all others: digests of the files, and how they are held."""
    digests = file_digests({tensor.file for tensor in read_checkpoint(folder).values()})
    return digests if quant == "none" else {**digests, "quant": f"{quant}, format {FORMAT}"}


def _kept(
    file: Path,
    folder: Path,
    config: ModelConfig,
    quant: str,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> Decoder:
    total = checkpoint_bytes(folder)
    progress(0, total)
    decoder = read_quantised(file, config, quant, dtype=dtype, device=device)
    progress(total, total)
    # The least recently used are those to throw away.
    with contextlib.suppress(OSError):
        os.utime(file)
    return decoder
