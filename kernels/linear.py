"""Products with a weight matrix: where a decoder's time goes.

`linears` chooses. PyTorch multiplies, but for one row in 16 bits on a CPU, which is a decode step:
that should take as long as reading the matrix does, and PyTorch's library takes several times as
long (PERFORMANCE.md); and many rows, which are a prompt, it may have to be given in float32
(`widened`). Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import widened
from .compiled import compiled

SMALLEST = 1 << 20
"""Numbers in the matrices from which on compiled code is called; a guess."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plus bias [N]: [T, N], all of one dtype.

    Sums are taken in float32 or wider and rounded once before the bias is added, or after.
    """
    return linears(x, [(weight, bias)])[0]


def linears(x: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """The same with several matrices, which for one row is one piece of work."""
    if x.shape[0] == 1 and _read_in_place(x, matrices):
        from .linear_numba import linears_numba

        return linears_numba(x, matrices)
    if widened.widens(x):
        return [widened.linear(x, weight, bias) for weight, bias in matrices]
    return linears_reference(x, matrices)


def linears_reference(x: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """The same by PyTorch, on any device."""
    return [F.linear(x, weight, bias) for weight, bias in matrices]


def _read_in_place(x: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> bool:
    parts = [part for pair in matrices for part in pair if part is not None]
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float16)
        and all(part.dtype == x.dtype and part.is_contiguous() for part in parts)
        and sum(part.numel() for part in parts) >= SMALLEST
        and compiled()
    )
