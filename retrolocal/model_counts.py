"""How much of a model a token goes through, in numbers: what estimates of time rest on."""

from __future__ import annotations

import torch

from .models.config import ModelConfig
from .models.decoder import Decoder


def matrix_elements(model: ModelConfig) -> int:
    """Of the matrices that a token inside a text is multiplied with: not the vocabulary's."""
    with torch.device("meta"):
        layers = Decoder(model).layers
    return sum(value.numel() for value in layers.parameters() if value.dim() > 1) - _idle(model)


def layer_elements(model: ModelConfig) -> int:
    """Of a token's hidden and inner states in all layers."""
    chosen = model.experts.per_token * model.experts.intermediate_size if model.experts else 0
    return sum(
        model.hidden_size + (chosen if layer.experts else model.intermediate_size)
        for layer in model.layers
    )


def read_share(model: ModelConfig) -> float:
    """Share of the weights that a decode step reads.

    Not the experts that a token does not go through, nor the table that it has one row of.
    """
    with torch.device("meta"):
        decoder = Decoder(model)
    table = 0 if model.tie_embeddings else decoder.embedding.weight.numel()
    there = sum(value.numel() for value in decoder.parameters())
    return (there - _idle(model) - table) / there


def _idle(model: ModelConfig) -> int:
    """Of the experts that a token does not go through."""
    if model.experts is None:
        return 0
    expert = 3 * model.hidden_size * model.experts.intermediate_size
    others = model.experts.count - model.experts.per_token
    return sum(layer.experts for layer in model.layers) * others * expert
