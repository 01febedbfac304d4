"""What this machine does per second, measured once and kept: what estimates of time rest on.

What a prompt computes is the best of a few short runs, what decode steps take the median of more:
there are many of them, and not all are undisturbed. On the threads that PyTorch has; the result is
kept in the user's cache directory per processor or GPU, threads and PyTorch.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from . import __version__
from .caches import layer_caches
from .config import DOCUMENT_STORE, SessionConfig, WaveConfig
from .kernels import quantised
from .kernels.attention import full_attention
from .kernels.linear import linear
from .kernels.quantised import Bits, quantise
from .model_counts import layer_elements, matrix_elements
from .models.config import read_config
from .models.weights import load_decoder
from .paths import builtin_model
from .remembered import remember, remembered
from .wave.clustering import cluster_segment

FILE = "machine.json"
REPEATS = 5
STEPS = 25
ROWS, COLUMNS, MATRICES = 16_384, 2_048, 4
"""Of the matrices that are multiplied in turn: together more than a CPU's caches hold."""
ATTENDED = 65_536
"""Tokens that one query attends to, for the same reason."""
SHORT = WaveConfig(segment_tokens=1024, store_type=DOCUMENT_STORE)
SHORT_TOKENS = 2_048
"""A text that costs a step next to nothing but what every step costs."""
BATCH = 256
"""Rows of a prompt."""
CHUNK_TOKENS = 8_192
"""Of a text that is read, and of a segment that is clustered."""


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
    elements: float
    """And of everything else that a layer does: numbers in its hidden and inner states."""
    attended_bytes: float
    """Of keys and values that one token attends to, all of them."""
    clustered: float
    """Tokens of one KV head, 64 dimensions."""
    layers: float
    """Of one token's step, when they have next to nothing to compute."""
    indexed_layers: float
    """Of one token's attention through a small index."""

    def product_bytes(self, quant: str) -> float:
        """Bytes of weights that decode steps get through."""
        return {"int8": self.int8_bytes, "int4": self.int4_bytes}.get(quant, self.weight_bytes)


def machine(
    device: torch.device,
    dtype: torch.dtype,
    tell: Callable[[str], None] = lambda line: None,
) -> Machine:
    """Measured now, which `tell` is told before, or on an earlier day."""
    key, names = _key(device, dtype), {field.name for field in fields(Machine)}
    rates = remembered(FILE, names).get(key, {})
    if not rates or not all(isinstance(rate, float) and rate > 0 for rate in rates.values()):
        tell("measuring this machine, once: about a minute")
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
    weights = itertools.cycle([weight, *(weight.clone() for _ in range(MATRICES - 1))])
    one, many = (torch.ones(rows, COLUMNS, dtype=dtype, device=device) for rows in (1, BATCH))
    q, k = (torch.ones(8, rows, 64, dtype=dtype, device=device) for rows in (BATCH, 4096))
    config = WaveConfig(segment_tokens=CHUNK_TOKENS)
    keys = torch.randn(1, CHUNK_TOKENS, 64).to(device, dtype)
    held = torch.ones(2, ATTENDED, 64, dtype=dtype, device=device)
    elements = ROWS * COLUMNS
    operations = 2 * elements * BATCH / _seconds(lambda: linear(many, weight))
    layer, indexed, states = _steps(device, dtype, operations)

    def product(bits: Bits) -> Callable[[], object]:
        matrix = quantise(weight, bits).to(dtype)
        return lambda: quantised.linear(one, matrix)

    return Machine(
        weight_bytes=elements * dtype.itemsize / _median(lambda: linear(one, next(weights))),
        int8_bytes=elements / _median(product(8)),
        int4_bytes=elements / 2 / _median(product(4)),
        matrix_operations=operations,
        attention_operations=4
        * 8
        * 64
        * BATCH
        * 4096
        / _seconds(lambda: full_attention(q, k, k, scale=0.125)),
        elements=states,
        attended_bytes=2
        * held.nbytes
        / _median(lambda: full_attention(q[:, :1], held, held, scale=0.125)),
        clustered=CHUNK_TOKENS / _seconds(lambda: cluster_segment(keys, keys, config)),
        layers=1 / layer,
        indexed_layers=1 / indexed,
    )


def _steps(
    device: torch.device, dtype: torch.dtype, operations: float
) -> tuple[float, float, float]:
    """Seconds of a layer's step with the built-in model, whose matrices are small, and of what its
    attention takes where it goes through an index; numbers per second that a text takes beside so
    many operations of its products."""
    folder = builtin_model()
    config = read_config(folder)
    decoder = load_decoder(folder, config, dtype=dtype, device=device)
    dense = layer_caches(config, SessionConfig(cache="dense"), dtype, device)
    token = torch.zeros(1, dtype=torch.long, device=device)
    # As who draws the next token does.
    step = _median(lambda: int(decoder(token, token, dense, 1)[0].argmax()))
    whole = next(n for n, layer in enumerate(config.layers) if layer.window is None)
    wave = layer_caches(config, SessionConfig(cache="wave", wave=SHORT), dtype, device)[whole]
    shape = (SHORT_TOKENS, config.head_dim)
    q, k = (torch.randn(n, *shape).to(device, dtype) for n in (config.heads, config.kv_heads))
    places = torch.arange(SHORT_TOKENS, device=device)
    wave.attend(q[:, :0], k, k, places)
    wave.settle()
    one, query = k[:, :1], q[:, :1]
    indexed = _median(lambda: wave.attend(query, one, one, places[:1]))
    places = torch.arange(CHUNK_TOKENS, device=device)
    ids = places % config.vocab_size

    def read() -> None:
        caches = layer_caches(config, SessionConfig(cache="dense"), dtype, device)
        decoder(ids, places, caches, 0)

    products = 2 * matrix_elements(config) * CHUNK_TOKENS / operations
    # Never less than half of it, however uneven the machine was between the two measurements.
    rest = max(0.5 * (took := _seconds(read)), took - products)
    return step / len(config.layers), indexed, layer_elements(config) * CHUNK_TOKENS / rest


def _median(work: Callable[[], object]) -> float:
    """Of the seconds of some runs, after one that does not count."""
    return statistics.median(_taken(work, STEPS)[1:])


def _taken(work: Callable[[], object], runs: int) -> list[float]:
    """Seconds of one run more than that."""
    taken = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return taken


def _seconds(work: Callable[[], object]) -> float:
    """The least of a few runs, after one that does not count."""
    return max(min(_taken(work, REPEATS)[1:]), 1e-9)


def _key(device: torch.device, dtype: torch.dtype) -> str:
    return "; ".join(
        (
            f"retrolocal {__version__}",
            f"torch {torch.__version__}",
            f"{processor(device)}, {torch.get_num_threads()} threads",
            str(dtype),
        )
    )
