"""What this machine does per second, measured once and kept: what estimates of time rest on.

Each figure is the best of a few short runs, on the threads that PyTorch has; the result is kept in
the user's cache directory per processor or GPU, threads and PyTorch.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from . import __version__
from .cache import DenseCache
from .config import WaveConfig
from .kernels import quantised
from .kernels.attention import full_attention
from .kernels.linear import linear
from .kernels.quantised import Bits, quantise
from .models.config import read_config
from .models.weights import load_decoder
from .paths import builtin_model
from .remembered import remember, remembered
from .wave.clustering import cluster_segment

FILE = "machine.json"
REPEATS = 5
ROWS, COLUMNS = 16_384, 2_048
"""Of the matrix that is multiplied: more than a CPU's caches hold."""
BATCH = 256
"""Rows of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Rates per second."""

    weight_bytes: float
    """Of a matrix that one row is multiplied with."""
    int8_bytes: float
    int4_bytes: float
    """The same of quantised ones."""
    matrix_operations: float
    """Additions and multiplications of a prompt's products."""
    attention_operations: float
    """And of its attention."""
    clustered: float
    """Tokens of one KV head, 64 dimensions."""
    layers: float
    """Of one token's step, when they have next to nothing to compute."""

    def product_bytes(self, quant: str) -> float:
        """Bytes of weights that decode steps get through."""
        return {"int8": self.int8_bytes, "int4": self.int4_bytes}.get(quant, self.weight_bytes)


def machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measured now, or on an earlier day."""
    key, names = _key(device, dtype), {field.name for field in fields(Machine)}
    rates = remembered(FILE, names).get(key, {})
    if not rates or not all(isinstance(rate, float) and rate > 0 for rate in rates.values()):
        rates = asdict(_measured(device, dtype))
        remember(FILE, key, rates)
    return Machine(**rates)


def processor(device: torch.device) -> str:
    """The name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if "model name" in line:
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _measured(device: torch.device, dtype: torch.dtype) -> Machine:
    weight = torch.full((ROWS, COLUMNS), 0.01, dtype=dtype, device=device)
    one, many = (torch.ones(rows, COLUMNS, dtype=dtype, device=device) for rows in (1, BATCH))
    q, k = (torch.ones(8, rows, 64, dtype=dtype, device=device) for rows in (BATCH, 4096))
    config = WaveConfig(segment_tokens=2048)
    keys = torch.randn(1, 2048, 64).to(device, dtype)

    def product(bits: Bits) -> Callable[[], object]:
        matrix = quantise(weight, bits).to(dtype)
        return lambda: quantised.linear(one, matrix)

    elements = ROWS * COLUMNS
    return Machine(
        weight_bytes=elements * dtype.itemsize / _seconds(lambda: linear(one, weight)),
        int8_bytes=elements / _seconds(product(8)),
        int4_bytes=elements / 2 / _seconds(product(4)),
        matrix_operations=2 * elements * BATCH / _seconds(lambda: linear(many, weight)),
        attention_operations=4
        * 8
        * 64
        * BATCH
        * 4096
        / _seconds(lambda: full_attention(q, k, k, scale=0.125)),
        clustered=2048 / _seconds(lambda: cluster_segment(keys, keys, config)),
        layers=_layers(device, dtype),
    )


def _layers(device: torch.device, dtype: torch.dtype) -> float:
    """With the built-in model, whose matrices are small."""
    folder = builtin_model()
    config = read_config(folder)
    decoder = load_decoder(folder, config, dtype=dtype, device=device)
    caches = [DenseCache() for _ in config.layers]
    token = torch.zeros(1, dtype=torch.long, device=device)
    return len(config.layers) / _seconds(lambda: decoder(token, token, caches, 1))


def _seconds(work: Callable[[], object]) -> float:
    """The least of a few runs, after one that does not count."""
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return max(min(taken[1:]), 1e-9)


def _key(device: torch.device, dtype: torch.dtype) -> str:
    return "; ".join(
        (
            f"retrolocal {__version__}",
            f"torch {torch.__version__}",
            f"{processor(device)}, {torch.get_num_threads()} threads",
            str(dtype),
        )
    )
