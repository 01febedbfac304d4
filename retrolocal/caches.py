"""Which cache each layer of a model gets, and from which lengths on it uses the index."""

from __future__ import annotations

import functools

import torch

from .cache import DenseCache, RingCache
from .config import SessionConfig
from .crossover import Crossover, Shape, crossover, tokens_of
from .models.config import ModelConfig
from .wave.cache import Lengths, WaveCache, never
from .wave.tiers import Tiers

STEPPED = 64
"""Tokens of a prompt behind a text that was read, up to which each goes through the index: so many
steps cost less than attending to everything, and read less."""
AnyCache = DenseCache | RingCache | WaveCache


def layer_caches(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    expected: int = 0,
    tiers: Tiers | None = None,
) -> list[AnyCache]:
    """An empty cache for every layer; wave caches share `tiers`, or keep everything in memory.

    A text that is `expected` to be long enough for the index is clustered from its first segment
    on, so that what is kept of it does not depend on when that was noticed.
    """
    lengths = wave_lengths(model, config, dtype, device, expected=expected)

    def cache(number: int, window: int | None) -> AnyCache:
        if window is not None:
            return RingCache(window)
        if config.cache == "dense":
            return DenseCache()
        store = None if tiers is None else tiers.store()
        return WaveCache(config.wave, store, layer=number, lengths=lengths)

    return [cache(number, layer.window) for number, layer in enumerate(model.layers)]


def wave_lengths(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    expected: int = 0,
) -> Lengths:
    """From which lengths on the layers' caches use the index; measured when first asked."""
    wave = config.wave
    shape = Shape(
        q_heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        device=device,
    )

    @functools.cache
    def measured() -> Crossover:
        return crossover(shape, wave)

    def from_prefill() -> int:
        # `auto` stays exact: sharp heads lose a wanted token now and then (PERFORMANCE.md).
        return tokens_of(measured().prefill, wave) if config.prefill == "wave" else never()

    def from_cluster() -> int:
        if config.cache == "wave":
            return 0
        length = tokens_of(measured().decode, wave)
        return 0 if expected > length else length

    return Lengths(
        cluster=from_cluster,
        prefill=from_prefill,
        stepped=0 if config.prefill == "dense" else STEPPED,
        may_stay_dense=config.cache == "auto",
    )
