"""Wave prefill: many queries at once through the index, a block of them at a time.

A block's queries attend exactly to the clusters chosen for the block and by estimation to all
others, so a chunk costs no more than a fixed share of what dense attention over the context does.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..config import WaveConfig
from ..kernels.gather import Fetch
from ..kernels.merge import merge
from ..kernels.wave_prefill import Blocks, wave_prefill
from .index import WaveIndex

BLOCK_TOKENS = 128
"""Positions whose queries share one choice of clusters."""


def blocks(config: WaveConfig) -> Blocks:
    """What a chunk of a prompt reads under these settings."""
    return Blocks(
        tokens=BLOCK_TOKENS,
        descend=config.prefill_descend,
        retrieved=config.prefill_cap,
        second_order=config.scheme == "wave",
    )


def prefill_attention(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    index: WaveIndex,
    config: WaveConfig,
    fetch: Fetch | None = None,
) -> Tensor:
    """q [Hq, T, D]; `steady` is out [Hq, T, D] and lse [Hq, T] over the steady zone.

    Returns [Hq, T, D] float32.
    """
    scale = 1 / math.sqrt(q.shape[2])
    rest = wave_prefill(q, steady[1], index.segments, blocks(config), scale=scale, fetch=fetch)
    return merge((steady[0].float(), steady[1]), rest)[0]
