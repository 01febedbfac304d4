"""How long a prompt and a token will take, from what they compute and read and measured rates.

Estimates, not promises: what they leave out (Python between operations, first compilations) weighs
in small models, and in decode steps through the index they count bytes, not cache misses.
"""

from __future__ import annotations

import torch

from .config import SessionConfig
from .kernels.codecs import CODED, Codec
from .machine import Machine
from .models.config import ModelConfig
from .models.decoder import Decoder
from .models.quantised import weight_bytes

ATTENDED = 0.6
"""Rate at which one query's dense attention reads keys and values, over that of a matrix
(PERFORMANCE.md: 6.0 to 7.2 GB/s where a matrix has 11)."""
GATHERED = 0.35
"""Rate at which scattered clusters are read, over that of a matrix."""


def prefill_seconds(
    model: ModelConfig, config: SessionConfig, tokens: int, rates: Machine
) -> float:
    """Of reading a text exactly (`--prefill wave` takes less)."""
    products = 2 * _matrix_elements(model) * tokens
    # The last layer computes keys and values only: nobody wants the logits inside a text.
    pairs = sum(_pairs(tokens, layer.window) for layer in model.layers[:-1])
    attention = 4 * model.heads * model.head_dim * pairs
    clustered = 0 if config.cache == "dense" else tokens * model.kv_heads * _indexed(model)
    return (
        products / rates.matrix_operations
        + attention / rates.attention_operations
        + clustered * (model.head_dim / 64) / rates.clustered
    )


def decode_seconds(
    model: ModelConfig, config: SessionConfig, dtype: torch.dtype, tokens: int, rates: Machine
) -> float:
    """Of one token after `tokens`: what it reads of weights and context, at measured rates."""
    weights = weight_bytes(model, dtype, config.quant)[0]
    row = 2 * model.head_dim * dtype.itemsize * model.kv_heads
    dense = sum(row * min(tokens, layer.window or tokens) for layer in model.layers)
    seconds = weights / rates.product_bytes(config.quant) + len(model.layers) / rates.layers
    if config.cache == "dense":
        return seconds + dense / (ATTENDED * rates.weight_bytes)
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
    attended, gathered = (share * rates.weight_bytes for share in (ATTENDED, GATHERED))
    through = windows / attended + scattered / gathered
    if config.cache == "auto":
        through = min(through, dense / attended)
    return seconds + through


def _matrix_elements(model: ModelConfig) -> int:
    """Of the matrices that every token of a prompt is multiplied with: not the vocabulary's."""
    with torch.device("meta"):
        layers = Decoder(model).layers
    return sum(value.numel() for value in layers.parameters() if value.dim() > 1)


def _pairs(tokens: int, window: int | None) -> float:
    """Query and key together, causally."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window


def _indexed(model: ModelConfig) -> int:
    return sum(layer.window is None for layer in model.layers)
