"""Quantised matrices: their error, their bytes, and products by every way there is."""

from __future__ import annotations

import pytest
import torch

from retrolocal.kernels import quantised
from retrolocal.kernels.quantised import (
    QuantisedMatrix,
    fits,
    linear,
    quantise,
    quantised_bytes,
    rows_of,
    unpacked,
)

SHAPES = [(64, 32), (128, 96), (320, 256), (64, 640)]


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """With a few columns far larger than the rest, as checkpoints have them, and a row of zeros."""
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    made[:, 3] *= 20
    made[5] = 0
    return made.bfloat16()


def whole(matrix: QuantisedMatrix) -> torch.Tensor:
    return unpacked(matrix, slice(0, matrix.shape[0] // 64)).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_is_further_away_than_half_a_step(
    shape: tuple[int, int], bits: quantised.Bits
) -> None:
    original = weights(*shape)
    matrix = quantise(original, bits)
    assert (matrix.shape, matrix.bits) == (shape, bits)
    grouped = original.float().unflatten(1, (-1, matrix.group))
    widest = grouped.abs().amax(2) / 127 if bits == 8 else (grouped.amax(2) - grouped.amin(2)) / 15
    error = (whole(matrix.to(torch.float32)) - original.float()).unflatten(1, (-1, matrix.group))
    # Half a step, and what rounding scale and offset to 8 bits moves the ends.
    moved = grouped.abs().amax(2) * 2**-7
    assert (error.abs().amax(2) <= 0.5 * widest + moved + 1e-12).all()
    assert whole(matrix)[5].abs().max() == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_are_as_announced(bits: quantised.Bits) -> None:
    matrix = quantise(weights(128, 256), bits)
    held = [*matrix.planes, *matrix.scales]
    assert sum(t.nbytes for t in held) == quantised_bytes(128, 256, bits)
    assert quantised_bytes(128, 256, bits) <= 128 * 256 * (bits + 0.51) / 8


@pytest.mark.parametrize("tokens", [0, 1, 3, 17, 400])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_products_are_those_of_the_unpacked_weights(
    tokens: int, bits: quantised.Bits, dtype: torch.dtype
) -> None:
    matrix = quantise(weights(320, 256), bits).to(dtype)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.arange(320).to(dtype) * 0.01
    answer = linear(x, matrix, bias)
    assert (answer.shape, answer.dtype) == ((tokens, 320), dtype)
    expected = x.float() @ whole(matrix.to(torch.float32)).t() + bias.float()
    bound = 1e-5 if dtype == torch.float32 else 0.02
    assert ((answer.float() - expected).norm() <= bound * expected.norm()).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_kernel_and_unpacking_agree(
    bits: quantised.Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = quantise(weights(128, 256), bits)
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    one = linear(x, matrix).float()
    monkeypatch.setattr(quantised, "has_kernel", lambda: False)
    other = linear(x, matrix).float()
    assert (one - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_single_rows_are_those_of_the_whole(bits: quantised.Bits) -> None:
    matrix = quantise(weights(192, 160), bits)
    numbers = torch.tensor([0, 5, 31, 32, 63, 64, 130, 191, 0])
    assert torch.equal(rows_of(matrix, numbers).float(), whole(matrix)[numbers])


def test_what_fits() -> None:
    assert fits(64, 32)
    assert not fits(48, 64)
    assert not fits(64, 48)
    assert not fits(0, 64)
