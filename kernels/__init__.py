"""Numerical operations on tensors: each one plain PyTorch first."""

from .rms_norm import rms_norm
from .rope import apply_rope, rotations

__all__ = ["apply_rope", "rms_norm", "rotations"]
