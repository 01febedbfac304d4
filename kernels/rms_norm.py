"""Root-mean-square normalisation, as the supported decoders compute it.

The mean square is taken in float32 whatever the input; the result is rounded to the input's dtype
before it meets the weight. `rms_norm` and `unit_rms_norm` choose: for one token in 16 bits on a CPU
there is compiled code. Know nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .compiled import one_token

BLOCK = 1 << 19
"""Numbers that a CPU normalises at once: in float32 they stay in its caches."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    x [..., D], weight [D] of x's dtype; returns [..., D] in that dtype.
    """
    if one_token(x, weight):
        from .rms_norm_numba import rms_norm_numba

        return rms_norm_numba(x, weight, eps, unit=False)
    return _in_blocks(rms_norm_reference, x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch."""
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def unit_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same with (1 + weight) as the weight, in float32: rounded once, at the end (Gemma)."""
    if one_token(x, weight):
        from .rms_norm_numba import rms_norm_numba

        return rms_norm_numba(x, weight, eps, unit=True)
    return _in_blocks(unit_rms_norm_reference, x, weight, eps)


def unit_rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch."""
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * (1.0 + weight.to(torch.float32))).to(x.dtype)


def _in_blocks(
    formula: Callable[[Tensor, Tensor, float], Tensor], x: Tensor, weight: Tensor, eps: float
) -> Tensor:
    """The same, of many tokens on a CPU block by block."""
    if x.device.type != "cpu" or x.dim() < 2 or x.numel() <= BLOCK:
        return formula(x, weight, eps)
    tokens = max(1, BLOCK * x.shape[-2] // x.numel())
    return torch.cat(
        [formula(part, weight, eps) for part in torch.split(x, tokens, dim=-2)], dim=-2
    )
