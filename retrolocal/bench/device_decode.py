"""Decode steps of a whole model within a limit of GPU memory: speed, and bytes from each memory.

The weights are random and the context is structured and synthetic. What the figures would be on
another card follows from the bytes: they are what a step waits for.
"""

from __future__ import annotations

import statistics
import time

import torch

from ..caches import AnyCache
from ..config import SessionConfig, WaveConfig
from ..device import device_name
from ..device_graph import GraphedModel
from ..generate import Model
from ..measurement import Progress, Result
from ..statistics import combine
from ..wave.cache import WaveCache
from .decode import filled_caches
from .model import TimedModel, find_model, open_decoder
from .options import SpeedOptions
from .synthetic import AttentionData, structured_data

STEPS = 64
CARD, BUS = 1e12, 25e9
"""Bytes per second of the memory of a consumer card, and of PCIe 4 with 16 lanes."""


def measure(
    model: str,
    tokens: int,
    session: SessionConfig,
    data: AttentionData | None,
    progress: Progress,
    *,
    seed: int = 0,
    steps: int = STEPS,
) -> Result:
    """`tokens` of context, some of `data` when its shape is the model's.

    The first `steps` fill the block caches, as many are timed. Raises what opening a model raises,
    and torch.OutOfMemoryError.
    """
    depth = tokens - 2 * steps
    options = SpeedOptions(
        model=model,
        random_weights=True,
        depths=(depth,),
        n_gen=(2 * steps,),
        caches=("wave",),
        session=session,
        seed=seed,
    )
    timed = find_model(options, progress)
    decoder = open_decoder(timed, options, progress)
    progress(f"filling the caches with {depth:,} tokens")
    rows = _rows(timed, data, depth, seed)
    if timed.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(timed.device)
    caches = filled_caches(timed.config, session, rows, depth, timed.dtype, timed.device)
    progress("timing decode steps")
    stepped: Model = GraphedModel(decoder) if timed.device.type == "cuda" else decoder
    _steps(stepped, caches, depth, steps, timed)
    for cache in caches:
        cache.reset_statistics()
    copied = _admitted(caches)
    seconds = _steps(stepped, caches, depth + steps, steps, timed)
    return _figures(timed, session.wave, caches, statistics.median(seconds), copied / steps, steps)


def _rows(model: TimedModel, data: AttentionData | None, depth: int, seed: int) -> AttentionData:
    shape = (model.config.kv_heads, model.config.head_dim)
    if data is not None and data.k.shape[::2] == shape and data.k.shape[1] >= depth:
        return data
    return structured_data(
        tokens=depth,
        q_heads=model.config.heads,
        kv_heads=shape[0],
        head_dim=shape[1],
        steps=1,
        seed=seed,
        dtype=model.dtype,
    )


def _steps(
    model: Model, caches: list[AnyCache], first: int, steps: int, timed: TimedModel
) -> list[float]:
    """Seconds of each."""
    generator = torch.Generator().manual_seed(first)
    ids = torch.randint(timed.config.vocab_size, (steps,), generator=generator).to(timed.device)
    taken = []
    for step in range(steps):
        positions = torch.tensor([first + step], device=timed.device)
        began = _now(timed.device)
        model(ids[step : step + 1], positions, caches, 1)
        taken.append(_now(timed.device) - began)
    return taken


def _figures(
    model: TimedModel,
    wave: WaveConfig,
    caches: list[AnyCache],
    seconds: float,
    admitted: float,
    steps: int,
) -> Result:
    """Per step; misses are taken to be as long as hits."""
    found = combine(cache.statistics() for cache in caches)
    layers = [cache for cache in caches if isinstance(cache, WaveCache)]
    row = layers[0].token_bytes if layers else 0
    retrieved = found.retrieved_tokens * model.config.kv_heads * len(layers) * row
    far = model.device.type == "cuda"
    missed = retrieved * (1 - (found.hit_ratio or 0.0)) if far else 0.0
    bus = missed + admitted
    weights = model.weight_bytes
    if not model.config.tie_embeddings:
        # A step reads one row of the embedding.
        weights -= model.config.vocab_size * model.config.hidden_size * model.dtype.itemsize
    near = weights + found.bytes_per_step - missed
    return {
        "model": model.name,
        "device": device_name(model.device),
        "tokens": found.tokens,
        "steps": steps,
        "ms": seconds * 1e3,
        "tokens_per_s": 1 / seconds,
        "peak_gpu_bytes": _peak(model.device),
        "weight_bytes": model.weight_bytes,
        "index_bytes": found.index_bytes,
        "block_cache_bytes": found.block_cache_bytes,
        "hit_ratio": found.hit_ratio,
        "bytes_per_token": {"gpu": near, "bus": bus},
        "elsewhere": {
            "card_gb_per_s": CARD / 1e9,
            "bus_gb_per_s": BUS / 1e9,
            "tokens_per_s": 1 / (near / CARD + bus / BUS),
            "tokens_per_s_overlapped": 1 / max(near / CARD, bus / BUS),
        },
    }


def _admitted(caches: list[AnyCache]) -> int:
    return sum(cache.admitted_bytes for cache in caches if isinstance(cache, WaveCache))


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
