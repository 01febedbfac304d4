"""Rotary position embedding: frequencies of each scaling rule, and the rotation itself.

Inverse frequencies are float32, as checkpoints were trained with them. Angles are formed in
float64: at two million positions a float32 angle is off by up to 0.1 rad. Dimension i turns with
dimension i + D/2 (the half layout), so cosines and sines have D/2 columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .compiled import one_token


def default_frequencies(dim: int, theta: float) -> Tensor:
    """theta^(-2i/dim) for i < dim/2: float32 [dim/2] on the CPU."""
    return 1.0 / _powers(dim, theta)


def linear_frequencies(dim: int, theta: float, *, factor: float) -> Tensor:
    """Positions divided by `factor`: float32 [dim/2] on the CPU."""
    return default_frequencies(dim, theta) / factor


def llama3_frequencies(
    dim: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_positions: int,
) -> Tensor:
    """Llama 3.1: long waves divided by `factor`, short ones kept, a smooth passage between.

    float32 [dim/2] on the CPU; `high_freq_factor` must exceed `low_freq_factor`.
    """
    frequencies = default_frequencies(dim, theta)
    waves = 2 * math.pi / frequencies
    long = waves > original_positions / low_freq_factor
    short = waves < original_positions / high_freq_factor
    smooth = original_positions / waves - low_freq_factor
    smooth = smooth / (high_freq_factor - low_freq_factor)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    return torch.where(long, frequencies / factor, torch.where(short, frequencies, between))


def yarn_frequencies(
    dim: int,
    theta: float,
    *,
    factor: float,
    original_positions: int,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
) -> Tensor:
    """YaRN (arXiv 2309.00071): dimensions that turn less than `beta_slow` times within
    `original_positions` are divided by `factor`, those above `beta_fast` kept, a ramp between.

    `truncate` rounds the ramp's ends outwards to whole dimensions. float32 [dim/2] on the CPU.
    """

    def dimension(turns: float) -> float:
        return dim * math.log(original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    powers = _powers(dim, theta)
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept


def longrope_frequencies(dim: int, theta: float, *, factors: Sequence[float]) -> Tensor:
    """LongRoPE (arXiv 2402.13753): each wavelength times a factor of its own.

    `factors` has dim/2 numbers; float32 [dim/2] on the CPU.
    """
    stretched = torch.tensor(factors, dtype=torch.float32, device="cpu")
    return 1.0 / (stretched * _powers(dim, theta))


def rotations(
    positions: Tensor, frequencies: Tensor, *, attention_factor: float | Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the given positions, times `attention_factor`.

    positions int64 [T], frequencies float32 [D/2], the factor a number or float64 [T, 1]; returns
    two [T, D/2] in `dtype` on the device of the positions. Formed in float64 and rounded once.
    """
    device = positions.device
    if device.type == "mps":  # has no float64
        positions = positions.cpu()
    wide = frequencies.to(device=positions.device, dtype=torch.float64, non_blocking=True)
    angles = positions.to(torch.float64)[:, None] * wide
    cos, sin = (part * attention_factor for part in (angles.cos(), angles.sin()))
    return cos.to(dtype).to(device), sin.to(dtype).to(device)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + R/2}) of the first R dimensions by its angle.

    x [H, T, D], cos and sin [T, R/2] of x's dtype; returns [H, T, D], contiguous.
    """
    if one_token(x, cos, sin):
        from .rope_numba import apply_rope_numba

        return apply_rope_numba(x, cos, sin)
    return apply_rope_reference(x, cos, sin)


def apply_rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)


def _powers(dim: int, theta: float) -> Tensor:
    steps = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
    powers: Tensor = theta ** (steps / dim)
    return powers
