from __future__ import annotations

import math

import pytest
import torch

from retrolocal.kernels import apply_rope, rotations
from retrolocal.kernels.rope import default_frequencies


def turned(x: torch.Tensor, positions: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    frequencies = default_frequencies(x.shape[2], 10000.0)
    cos, sin = rotations(positions, frequencies, attention_factor=factor, dtype=x.dtype)
    return apply_rope(x, cos, sin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 7, 8), (2, 0, 6), (14, 5, 64)], ids=str)
def test_the_rotation_is_the_one_of_transformers(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    angles = torch.randn(shape[1], shape[2] // 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    doubled = (torch.cat((part, part), dim=-1)[None] for part in (cos, sin))
    expected, _ = llama.apply_rotary_pos_emb(x[None], x[None], *doubled)
    assert torch.equal(apply_rope(x, cos, sin), expected[0])


@pytest.mark.parametrize("position", [0, 1, 4095, 131_071, 2_000_003, 2**31 - 1])
def test_angles_are_exact_far_out(position: int) -> None:
    frequencies = default_frequencies(64, 10000.0)
    cos, sin = rotations(
        torch.tensor([position]), frequencies, attention_factor=1.0, dtype=torch.float32
    )
    angles = [position * float(frequency) for frequency in frequencies]
    expected = torch.tensor([[math.cos(a) for a in angles], [math.sin(a) for a in angles]])
    torch.testing.assert_close(torch.cat((cos, sin)), expected, atol=1e-6, rtol=0)


def test_scores_depend_on_distances_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, 16, dtype=torch.float64)
    positions = torch.tensor([0, 3, 11])
    near = turned(q, positions) @ turned(k, positions).transpose(1, 2)
    far = positions + 1_000_000
    torch.testing.assert_close(turned(q, far) @ turned(k, far).transpose(1, 2), near)


def test_the_attention_factor_multiplies() -> None:
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3)
    torch.testing.assert_close(turned(x, positions, factor=1.25), turned(x, positions) * 1.25)


def test_position_zero_turns_nothing() -> None:
    x = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned(x, torch.tensor([0])), x)
