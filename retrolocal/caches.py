"""Which cache each layer of a model gets, and from which lengths on it uses the index."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from .cache import DenseCache, RingCache
from .config import SessionConfig
from .crossover import Crossover, Shape, crossover, is_known, tokens_of
from .device import free_bytes
from .models.config import ModelConfig
from .relief import SMALLER_CACHE
from .wave.beside import Beside
from .wave.cache import WaveCache
from .wave.lengths import Lengths, never
from .wave.store import BlockStore, PinnedStore
from .wave.tiers import Tiers
from .wave.zones import pending, piece_end

STEPPED = 64
"""Tokens of a prompt behind a text that was read, up to which each goes through the index: so many
steps cost less than attending to everything, and read less."""
BLOCK_CACHE_SHARE = 4
"""One part in so many of a GPU's free memory is for slots; indexes and prompts want the rest."""
AnyCache = DenseCache | RingCache | WaveCache


def layer_caches(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    expected: int = 0,
    tiers: Tiers | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[AnyCache]:
    """An empty cache for every layer; wave caches share `tiers`, or keep everything in memory.

    A text that is `expected` to be long enough for the index is clustered from its first segment
    on, so that what is kept of it does not depend on when that was noticed. `tell` takes lines
    about what a GPU's memory had no room for.
    """
    lengths = wave_lengths(model, config, dtype, device, expected=expected)
    whole = sum(layer.window is None for layer in model.layers)
    block_cache = free_bytes(device, config.vram) // BLOCK_CACHE_SHARE // max(1, whole)

    beside: Beside | None = None
    ahead: Beside | None = None
    if device.type == "cuda":
        beside, ahead = Beside(device), Beside(device)

    def cache(number: int, window: int | None) -> AnyCache:
        if window is not None:
            return RingCache(window, device)
        if config.cache == "dense":
            return DenseCache(device, chunk_tokens=model.chunk_tokens, expected=expected)
        store: BlockStore | None = None if tiers is None else tiers.store()
        if device.type != "cpu":
            store = PinnedStore()
        return WaveCache(
            config.wave,
            store,
            layer=number,
            lengths=lengths,
            chunk_tokens=model.chunk_tokens,
            device=device,
            # Ranges of chunks have tables of their own, without slots.
            block_cache=block_cache if model.chunk_tokens is None else 0,
            tell=lambda: tell(SMALLER_CACHE),
            beside=beside,
            ahead=ahead,
        )

    return [cache(number, layer.window) for number, layer in enumerate(model.layers)]


def may_be_clustered(model: ModelConfig, config: SessionConfig, tokens: int) -> bool:
    """Whether a text of so many tokens has enough of them for a segment, in caches with any."""
    wave = config.wave
    if config.cache == "dense" or all(layer.window is not None for layer in model.layers):
        return False
    waiting = pending(tokens, wave.sink_tokens, wave)
    return waiting >= min(wave.growth_tokens, wave.segment_tokens) or tokens >= piece_end(
        0, wave, model.chunk_tokens
    )


def index_note(config: SessionConfig) -> str | None:
    """What to say where the index was asked to work in some way and may not be used."""
    given = [
        f"--{name} {value}"
        for name, value in (("scheme", config.wave.scheme), ("budget", config.wave.budget))
        if value not in ("wave", None)
    ]
    if not given or config.cache == "wave":
        return None
    where = "in no text with --cache dense"
    if config.cache == "auto":
        where = "from the length on where the index is no slower, with --cache wave in every text"
    return f"{' and '.join(given)}: used {where}"


def unmeasured(
    model: ModelConfig, config: SessionConfig, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether the length from which the index is used has to be measured first."""
    asks = config.cache == "auto" or (config.cache == "wave" and config.prefill == "wave")
    return asks and not is_known(_shape(model, dtype, device), config.wave)


def is_clustered(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
) -> bool:
    """Whether a text of so many tokens is clustered when it is read."""
    if not may_be_clustered(model, config, tokens):
        return False
    return tokens > wave_lengths(model, config, dtype, device, expected=tokens).cluster()


def wave_lengths(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    expected: int = 0,
) -> Lengths:
    """From which lengths on the layers' caches use the index; measured when first asked."""
    wave, shape = config.wave, _shape(model, dtype, device)

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


def _shape(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> Shape:
    return Shape(
        q_heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        device=device,
    )
