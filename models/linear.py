"""The matrices of a decoder that a checkpoint has as they are; quantised_modules.py has others."""

from __future__ import annotations

from torch import Tensor, nn

from ..kernels.linear import linear


class Linear(nn.Linear):
    """nn.Linear whose product is `kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x [T, K]; returns [T, N]."""
        return linear(x, self.weight, self.bias)
