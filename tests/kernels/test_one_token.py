"""What a decode step computes in compiled code besides products, beside the references."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")

# The package has functions of these names, too.
norms, ropes = (
    importlib.import_module(f"retrolocal.kernels.{name}") for name in ("rms_norm", "rope")
)
SIXTEEN_BITS = [torch.bfloat16, torch.float16]


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def no_reference(monkeypatch: pytest.MonkeyPatch, module: object, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("PyTorch was asked"))


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (1, 2048), (5, 1, 64)], ids=str)
@pytest.mark.parametrize("unit", [False, True], ids=["plain", "unit"])
def test_norms(
    shape: tuple[int, ...], dtype: torch.dtype, unit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype, seed=1)
    reference = norms.unit_rms_norm_reference if unit else norms.rms_norm_reference
    expected = reference(x, weight, 1e-5)
    no_reference(monkeypatch, norms, "rms_norm_reference", "unit_rms_norm_reference")
    result = (norms.unit_rms_norm if unit else norms.rms_norm)(x, weight, 1e-5)
    assert (result.dtype, result.shape) == (dtype, shape)
    # The scale may differ in the last bit of a float32, and so what is rounded from it by one step.
    torch.testing.assert_close(result, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert (result != expected).float().mean() < 0.01


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
@pytest.mark.parametrize(("heads", "dim", "turned"), [(1, 2, 2), (3, 7, 4), (32, 64, 64)], ids=str)
def test_rope_is_the_reference_to_the_last_bit(
    heads: int, dim: int, turned: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As projections leave them: heads side by side in one row.
    x = drawn(1, heads * dim, dtype=dtype).view(1, heads, dim).transpose(0, 1)
    cos, sin = (drawn(1, turned // 2, dtype=dtype, seed=seed) for seed in (1, 2))
    expected = ropes.apply_rope_reference(x, cos, sin)
    no_reference(monkeypatch, ropes, "apply_rope_reference")
    assert torch.equal(ropes.apply_rope(x, cos, sin), expected)


def test_what_is_not_finite_stays_so() -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0, 3.0]], dtype=torch.bfloat16)
    ones = torch.ones(4, dtype=torch.bfloat16)
    assert norms.rms_norm(x, ones, 1e-5).isnan().all()
    x = torch.tensor([[[3e38, 3e38, 3e38, float("nan")]]], dtype=torch.bfloat16)
    turned = ropes.apply_rope(x, -ones[None, :2], ones[None, :2])
    assert turned[0, 0].tolist()[0] == float("-inf")
    assert turned[0, 0].isnan().tolist() == [False, True, False, True]


def test_other_inputs_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for module, names in (
        (norms, ("rms_norm_reference", "unit_rms_norm_reference")),
        (ropes, ("apply_rope_reference",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, name=name: asked.append(name))
    half, wide = torch.bfloat16, torch.float32
    for x in (drawn(2, 8, dtype=half), drawn(1, 8, dtype=wide), drawn(1, 16, dtype=half)[:, ::2]):
        norms.rms_norm(x, torch.ones(8, dtype=x.dtype), 1e-5)
        norms.unit_rms_norm(x, torch.ones(8, dtype=x.dtype), 1e-5)
        turn = torch.ones(x.shape[0], 4, dtype=x.dtype)
        ropes.apply_rope(x[None], turn, turn)
    assert len(asked) == 9
