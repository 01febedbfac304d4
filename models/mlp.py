"""The feed-forward networks of a layer: one gated MLP, or many of which a few answer each token.

Know nothing of positions or caches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Activation, ExpertsConfig
from .linear import Linear
from .quantised_modules import products

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.gate = Linear(hidden_size, intermediate_size, bias=bias)
        self.up = Linear(hidden_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden]; returns the same shape."""
        gate, up = products(x, self.gate, self.up)
        gate = self.activation(gate)
        out: Tensor = self.down(gate * up)
        return out


class ExpertMlp(nn.Module):
    """A router's choice of MLPs per token, weighted by its softmax over all of them.

    Tokens are put in the order of their experts, so each expert that is chosen at all multiplies
    one contiguous run of rows, once; weights of the others are not touched, which is what keeps a
    decode step cheap while weights lie in a mapped file.
    """

    def __init__(self, hidden_size: int, config: ExpertsConfig, activation: Activation) -> None:
        super().__init__()
        self.per_token = config.per_token
        self.normalised = config.normalised
        self.router = Linear(hidden_size, config.count, bias=False)
        self.experts = nn.ModuleList(
            GatedMlp(hidden_size, config.intermediate_size, bias=False, activation=activation)
            for _ in range(config.count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [T, hidden]; returns the same shape."""
        weights, chosen = self._route(x)
        order = torch.argsort(chosen.flatten(), stable=True)
        rows = order // self.per_token
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        inputs, scale = x[rows], weights.flatten()[order, None]
        parts, start = [], 0
        for number, count in enumerate(counts):
            if count:
                piece = slice(start, start + count)
                parts.append(self.experts[number](inputs[piece]) * scale[piece])
                start += count
        out = torch.zeros_like(x)
        return out.index_add_(0, rows, torch.cat(parts)) if parts else out

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of x's dtype and numbers of the chosen experts, [T, per_token] each."""
        shares = torch.softmax(self.router(x), dim=-1, dtype=torch.float32)
        weights, chosen = torch.topk(shares, self.per_token, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(x.dtype), chosen
