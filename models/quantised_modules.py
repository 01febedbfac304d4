"""Modules that multiply by quantised matrices; see `quantised` for which of them are."""

from __future__ import annotations

from torch import Tensor, nn

from ..kernels import quantised
from ..kernels.linear import linear, linears
from ..kernels.quantised import QuantisedMatrix, rows_of
from .linear import Linear


class QuantisedLinear(nn.Module):
    """nn.Linear with its matrix quantised."""

    def __init__(self, matrix: QuantisedMatrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x [T, K]; returns [T, N]."""
        return quantised.linear(x, self.matrix, self.bias)


class QuantisedEmbedding(nn.Module):
    """nn.Embedding with its matrix quantised; it serves as the output matrix, too."""

    def __init__(self, matrix: QuantisedMatrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids int64 [T]; returns [T, hidden]."""
        return rows_of(self.matrix, token_ids)


def products(x: Tensor, *matrices: nn.Module) -> list[Tensor]:
    """x [T, K] times each module's matrix, [T, N] each: by `linears` where they are whole."""
    whole = [matrix for matrix in matrices if isinstance(matrix, Linear)]
    if len(whole) == len(matrices):
        return linears(x, [(matrix.weight, matrix.bias) for matrix in whole])
    return [matrix(x) for matrix in matrices]


def tied_logits(embedding: nn.Module, hidden: Tensor) -> Tensor:
    """hidden [T, K] times the embedding's matrix, [T, vocabulary]."""
    if isinstance(embedding, QuantisedEmbedding):
        return quantised.linear(hidden, embedding.matrix)
    assert isinstance(embedding, nn.Embedding)
    return linear(hidden, embedding.weight)
