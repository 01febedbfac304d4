"""Joins attention over disjoint sets of keys: softmax over the union from the parts.

out = sum_p exp(lse_p - lse) out_p with lse = log sum_p exp(lse_p) (RetroInfer,
arXiv 2505.02922, "tripartite attention"). Plain PyTorch on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merge(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Each part is out [..., D] and lse [...]; returns both in float32.

    A part with lse = -inf holds no keys and adds nothing; all parts empty give out = 0.
    """
    lse = parts[0][1]
    for _, other in parts[1:]:
        lse = torch.logaddexp(lse, other)
    safe = lse.masked_fill(lse == -math.inf, 0.0)
    out = torch.zeros_like(parts[0][0], dtype=torch.float32)
    for part, part_lse in parts:
        out += part.float() * torch.exp(part_lse - safe)[..., None]
    return out, lse
