from __future__ import annotations

import pytest
import torch

from retrolocal.kernels import rms_norm
from retrolocal.kernels.rms_norm import unit_rms_norm

SHAPES = [(1, 1), (3, 7), (2, 5, 64), (4, 0, 16), (1, 896)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    result = rms_norm(x, weight, 1e-6)
    assert result.dtype == dtype
    assert result.shape == x.shape
    torch.testing.assert_close(
        result.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(1500, 700), (3, 400, 640), (2, 1 << 20)], ids=str)
@pytest.mark.parametrize("unit", [False, True])
def test_many_tokens_are_what_each_is_alone(shape: tuple[int, ...], unit: bool) -> None:
    """They are more than one block; a row of the last shape is."""
    torch.manual_seed(0)
    norm = unit_rms_norm if unit else rms_norm
    x, weight = torch.randn(shape).bfloat16().transpose(0, -2), torch.randn(shape[-1]).bfloat16()
    rows = [norm(row, weight, 1e-6) for row in x.unbind(-2)]
    assert torch.equal(norm(x, weight, 1e-6), torch.stack(rows, dim=-2))


def test_the_mean_square_is_taken_in_float32() -> None:
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    result = rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6)
    torch.testing.assert_close(result, torch.ones_like(x))


def test_transformers_agrees_to_the_last_bit() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        norm = llama.LlamaRMSNorm(48, eps=1e-5)
        norm.weight.data = torch.randn(48).to(dtype)
        x = torch.randn(2, 5, 48).to(dtype)
        assert torch.equal(rms_norm(x, norm.weight, 1e-5), norm(x))
