"""A chunk's queries through the index on a GPU against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from retrolocal.config import WaveConfig
from retrolocal.kernels.wave_prefill import Blocks, wave_prefill_reference
from retrolocal.kernels.wave_prefill_triton import wave_prefill_triton

pytestmark = [
    pytest.mark.usefixtures("triton_device"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
SMALL = WaveConfig(
    cluster_tokens=8, group_clusters=4, iterations=2, index_type="f32", store_type="bf16"
)
RULES = Blocks(tokens=12, descend=0.4, retrieved=0.2)


@pytest.mark.parametrize(
    ("index", "store", "dtype", "heads", "dim", "rules"),
    [
        pytest.param("f32", "bf16", torch.float32, (3, 1), 16, RULES, id="plain, last block short"),
        pytest.param("int8", "int8", torch.float32, (2, 2), 80, RULES, id="int8, dim 80"),
        pytest.param(
            "int8",
            "int8",
            torch.float32,
            (2, 1),
            16,
            replace(RULES, descend=1.0, retrieved=1.0),
            id="everything",
        ),
        pytest.param(
            "f32",
            "bf16",
            torch.float32,
            (2, 1),
            16,
            replace(RULES, second_order=False, retrieved=0.0),
            id="first order, nothing retrieved",
        ),
    ],
)
def test_says_what_the_reference_says(
    make_step: Callable[..., Any],
    index: str,
    store: str,
    dtype: torch.dtype,
    heads: tuple[int, int],
    dim: int,
    rules: Blocks,
) -> None:
    config = replace(SMALL, index_type=index, store_type=store)  # type: ignore[arg-type]
    step = make_step(3, (90, 41), heads=heads, dim=dim, config=config, store=dtype)
    generator = torch.Generator().manual_seed(1)
    q = step.q[:, None] + torch.randn(heads[0], 20, dim, generator=generator)
    lse = torch.randn(heads[0], 20, generator=generator)
    expected, expected_lse = wave_prefill_reference(q, lse, step.segments, rules, scale=step.scale)
    found, found_lse = wave_prefill_triton(q, lse, step.segments, rules, scale=step.scale)
    # The reference estimates with values of eight bits.
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found_lse, expected_lse, rtol=1e-4, atol=1e-4)
