"""The decoder's matrices in 8 or 4 bits: which of them, and where they go.

int8 takes every matrix; int4 those of the layers, while the embedding and the output matrix, which
shape every logit, are kept in 8 bits. Norms, biases, a router of experts and matrices whose shape
does not fit (kernels/quantised.py) stay as the checkpoint has them. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..kernels.quantised import Bits, QuantisedMatrix, fits, quantise, quantised_bytes
from .config import ModelConfig
from .decoder import Decoder
from .quantised_modules import QuantisedEmbedding, QuantisedLinear

BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
"""Of the layers' matrices, by the name of the setting."""
OUTER: Bits = 8
"""Of the embedding and the output matrix."""
WHOLE = ("router",)
"""Modules whose small matrix decides, so that nothing is saved and much lost."""


def bits_of(parameter: str, module: nn.Module, quant: str) -> Bits | None:
    """Bits of the weight `parameter` of `module` under a setting; None when it stays whole."""
    if quant not in BITS or not parameter.endswith(".weight"):
        return None
    if isinstance(module, nn.Embedding):
        rows, columns, bits = module.num_embeddings, module.embedding_dim, OUTER
    elif isinstance(module, nn.Linear) and not parameter.endswith(
        tuple(f"{name}.weight" for name in WHOLE)
    ):
        rows, columns = module.out_features, module.in_features
        bits = OUTER if parameter == "head.weight" else BITS[quant]
    else:
        return None
    return bits if fits(rows, columns) else None


def install(decoder: Decoder, parameter: str, matrix: QuantisedMatrix) -> None:
    """Puts a quantised matrix where the weight `parameter` was."""
    path = parameter.removesuffix(".weight")
    parent, _, leaf = path.rpartition(".")
    module = decoder.get_submodule(path)
    made = (
        QuantisedEmbedding(matrix)
        if isinstance(module, nn.Embedding)
        else QuantisedLinear(matrix, module.bias)  # type: ignore[arg-type]
    )
    setattr(decoder.get_submodule(parent), leaf, made)


def matrices(decoder: Decoder) -> Iterator[tuple[str, QuantisedMatrix]]:
    """Name of the weight that it stands for, and each quantised matrix."""
    for path, module in decoder.named_modules():
        if isinstance(module, (QuantisedLinear, QuantisedEmbedding)):
            yield f"{path}.weight", module.matrix


def weight_bytes(config: ModelConfig, dtype: torch.dtype, quant: str) -> tuple[int, int]:
    """Bytes of all weights as they will be in memory, and of the largest one while it is whole."""
    with torch.device("meta"):
        decoder = Decoder(config)
    total = largest = 0
    for parameter, value in decoder.named_parameters():
        whole = value.numel() * dtype.itemsize
        bits = bits_of(parameter, decoder.get_submodule(parameter.rpartition(".")[0]), quant)
        total += (
            whole
            if bits is None
            else quantised_bytes(value.shape[0], value.shape[1], bits, scale_bytes=dtype.itemsize)
        )
        largest = max(largest, whole)
    return total, largest


def quantise_decoder(decoder: Decoder, quant: str) -> None:
    """Quantises a decoder that is in memory, matrix by matrix."""
    for parameter, value in list(decoder.named_parameters()):
        module = decoder.get_submodule(parameter.rpartition(".")[0])
        bits = bits_of(parameter, module, quant)
        if bits is not None:
            install(decoder, parameter, quantise(value.detach(), bits).to(value.dtype))
