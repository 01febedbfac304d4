"""The gated feed-forward network of a layer. Knows nothing of positions or caches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden]; returns the same shape."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out
