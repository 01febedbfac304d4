"""Projections of one layer around a cache that owns the keys, the values and how to attend.

`LayerCache` is the seam: anything of that shape serves, and the layer never sees keys again once
it has handed them over. Knows nothing of windows, clusters or where a cache keeps its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..kernels.rms_norm import rms_norm, unit_rms_norm
from ..kernels.rope import apply_rope
from .config import ModelConfig
from .finite import require_finite
from .linear import Linear
from .quantised_modules import products

Turn = tuple[Tensor, Tensor]
"""Cosines and sines [T, R / 2] of T tokens, R being the dimensions of a head that turn."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the keys and the queries of T tokens turn."""

    keys: Turn
    queries: tuple[Turn, ...]
    """One; under dual chunk attention three, see `LayerCache.attend`."""


class LayerCache(Protocol):
    """Keys and values of one layer, and the attention over them."""

    @property
    def tokens(self) -> int:
        """Tokens appended so far."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """Appends the keys and values of T new tokens, then answers the last Tq of them.

        q [Hq, Tq, D] with 0 <= Tq <= T, k and v [Hkv, T, D] after RoPE, positions int64 [T].
        Returns [Hq, Tq, D] in q's dtype: causal softmax attention with scale 1/sqrt(D).

        A cache made for dual chunk attention takes q [3, Hq, Tq, D]: the queries as they ask for
        the keys of their own chunk, of the chunk before, and of all earlier chunks.
        """
        ...


class Attention(nn.Module):
    """Query, key, value and output projections of one layer."""

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        self.index = index
        """Number of the layer, for messages."""
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        self.head_dim = config.head_dim
        self.eps = config.rms_norm_eps
        self.query_scale = config.query_scale
        self.norm = unit_rms_norm if config.unit_norms else rms_norm
        self.check = require_finite
        """Is given what enters the cache."""
        hidden, dim, bias = config.hidden_size, config.head_dim, config.qkv_bias
        self.query = Linear(hidden, config.heads * dim, bias=bias)
        self.key = Linear(hidden, config.kv_heads * dim, bias=bias)
        self.value = Linear(hidden, config.kv_heads * dim, bias=bias)
        self.output = Linear(config.heads * dim, hidden, bias=config.output_bias)
        self.query_norm = nn.Parameter(torch.ones(dim)) if config.qk_norm else None
        self.key_norm = nn.Parameter(torch.ones(dim)) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        positions: Tensor,
        cache: LayerCache,
        asking: int,
    ) -> Tensor:
        """x [T, hidden], positions int64 [T]; `rotation` is None in a layer without RoPE.

        All T tokens enter the cache; returns [asking, hidden] for the last `asking` of them.
        """
        first = x.shape[0] - asking
        if first == 0:
            q, k, v = products(x, self.query, self.key, self.value)
        else:
            q, (k, v) = self.query(x[first:]), products(x, self.key, self.value)
        q, k, v = _heads(q, self.heads), _heads(k, self.kv_heads), _heads(v, self.kv_heads)
        if self.query_norm is not None and self.key_norm is not None:
            q = self.norm(q, self.query_norm, self.eps)
            k = self.norm(k, self.key_norm, self.eps)
        if self.query_scale != 1.0:
            q = q * self.query_scale
        if rotation is not None:
            k = apply_rope(k, *rotation.keys)
            turned = [apply_rope(q, cos[first:], sin[first:]) for cos, sin in rotation.queries]
            q = turned[0] if len(turned) == 1 else torch.stack(turned)
        self.check(k, v, positions, self.index)
        answer = cache.attend(q, k, v, positions)
        joined = answer.transpose(0, 1).reshape(asking, self.heads * self.head_dim)
        out: Tensor = self.output(joined)
        return out


def _heads(x: Tensor, heads: int) -> Tensor:
    """[T, heads * D] -> [heads, T, D]."""
    return x.view(x.shape[0], heads, x.shape[1] // heads).transpose(0, 1)
