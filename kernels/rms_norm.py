"""Root-mean-square normalisation, as the supported decoders compute it.

The mean square is taken in float32 whatever the input; the result is rounded to the input's dtype
before it meets the weight. `rms_norm` and `unit_rms_norm` choose: for one token in 16 bits on a CPU
there is compiled code. Know nothing of models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .compiled import one_token


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    x [..., D], weight [D] of x's dtype; returns [..., D] in that dtype.
    """
    if one_token(x, weight):
        from .rms_norm_numba import rms_norm_numba

        return rms_norm_numba(x, weight, eps, unit=False)
    return rms_norm_reference(x, weight, eps)


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
    return unit_rms_norm_reference(x, weight, eps)


def unit_rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch."""
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * (1.0 + weight.to(torch.float32))).to(x.dtype)
