"""Keys as real ones are: clustered, with large constant offsets and some lone tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Rows = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def structured() -> Callable[..., Rows]:
    def make(seed: int, tokens: int, heads: int = 4, kv_heads: int = 2, dim: int = 16) -> Rows:
        """q [heads, tokens, dim], k and v [kv_heads, tokens, dim], float32."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        topics = normal(kv_heads, 12, dim) * 2
        topic = torch.randint(0, 12, (tokens,), generator=generator)
        topic = topic[(torch.arange(tokens) // 5) * 5 % tokens]
        k = topics[:, topic] + 0.5 * normal(kv_heads, tokens, dim) + 3 * normal(kv_heads, 1, dim)
        q = topics[:, topic.flip(0)].repeat_interleave(heads // kv_heads, dim=0)
        return q + normal(heads, tokens, dim), k, normal(kv_heads, tokens, dim)

    return make
