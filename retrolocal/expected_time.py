"""How long a prompt and a token will take, from what they compute and read and measured rates.

Estimates, not promises: they leave out first compilations, and in decode steps through the index
they count bytes, not cache misses. What a step costs whatever its size is among the measured rates.
"""

from __future__ import annotations

import torch

from .config import SessionConfig
from .kernels.codecs import CODED, Codec
from .machine import Machine
from .model_counts import layer_elements, matrix_elements, read_share
from .models.config import ModelConfig
from .models.quantised import weight_bytes

GATHERED = 0.5
"""Rate at which scattered clusters are read, over that of dense attention (PERFORMANCE.md: 2.3 to 4
GB/s where dense attention has 6 to 7)."""


def prefill_seconds(
    model: ModelConfig, config: SessionConfig, tokens: int, rates: Machine
) -> float:
    """Of reading a text exactly (`--prefill wave` takes less)."""
    products = 2 * matrix_elements(model) * tokens
    # The last layer computes keys and values only: nobody wants the logits inside a text.
    pairs = sum(_pairs(tokens, layer.window) for layer in model.layers[:-1])
    attention = 4 * model.heads * model.head_dim * pairs
    clustered = 0 if config.cache == "dense" else tokens * model.kv_heads * _indexed(model)
    return (
        products / rates.matrix_operations
        + attention / rates.attention_operations
        + layer_elements(model) * tokens / rates.elements
        + clustered * (model.head_dim / 64) / rates.clustered
    )


def decode_seconds(
    model: ModelConfig, config: SessionConfig, dtype: torch.dtype, tokens: int, rates: Machine
) -> float:
    """Of one token after `tokens`: what it reads of weights and context, at measured rates."""
    weights = weight_bytes(model, dtype, config.quant)[0] * read_share(model)
    row = 2 * model.head_dim * dtype.itemsize * model.kv_heads
    dense = sum(row * min(tokens, layer.window or tokens) for layer in model.layers)
    seconds = weights / rates.product_bytes(config.quant) + len(model.layers) / rates.layers
    if config.cache == "dense" or tokens <= config.wave.growth_tokens:
        # So short a text has no index.
        return seconds + dense / rates.attended_bytes
    windows = sum(row * min(tokens, w.window) for w in model.layers if w.window is not None)
    wave = config.wave
    code = CODED.get(wave.store_type)
    stored = row if code is None else Codec(code).token_bytes(model.head_dim) * model.kv_heads
    read = tokens if wave.budget is None else wave.budget * tokens
    if wave.budget is None:
        read = min(tokens, max(wave.least, min(wave.cap * tokens, wave.most)))
    clusters = tokens / wave.cluster_tokens * (1 / wave.group_clusters + wave.descend)
    index = clusters * 2 * model.head_dim * model.kv_heads
    scattered = _indexed(model) * (read * stored + index)
    through = windows / rates.attended_bytes + scattered / (GATHERED * rates.attended_bytes)
    through += _indexed(model) / rates.indexed_layers
    if config.cache == "auto":
        through = min(through, dense / rates.attended_bytes)
    return seconds + through


def _pairs(tokens: int, window: int | None) -> float:
    """Query and key together, causally."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window


def _indexed(model: ModelConfig) -> int:
    return sum(layer.window is None for layer in model.layers)
