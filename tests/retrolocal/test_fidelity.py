"""What measures the approximation must itself be exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retrolocal.bench.synthetic import AttentionData, structured_data
from retrolocal.config import WaveConfig
from retrolocal.fidelity import build_index, compare, exact_attention
from retrolocal.kernels.wave_attention import NEGLIGIBLE_VALUES
from retrolocal.wave.zones import next_growth

CONFIG = WaveConfig(
    segment_tokens=512, growth_tokens=200, iterations=2, index_type="f32", store_type="bf16"
)


def data(tokens: int = 1300) -> AttentionData:
    return structured_data(
        tokens=tokens, q_heads=6, kv_heads=2, head_dim=16, steps=3, gain=0.5, dtype=torch.float32
    )


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (rows.double().repeat_interleave(3, dim=0) for rows in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q.double()[:, None], k, v)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_attention_is_pytorchs(dtype: torch.dtype) -> None:
    one = data()
    q, k, v = one.q[0].to(dtype), one.k.to(dtype), one.v.to(dtype)
    out, lse = exact_attention(q, k, v)
    assert out.dtype == lse.dtype == torch.float64
    torch.testing.assert_close(out, dense(q, k, v), atol=1e-12, rtol=1e-12)
    scores = q.double().view(2, 3, 16) @ k.double().transpose(1, 2) / 4
    torch.testing.assert_close(lse, torch.logsumexp(scores, dim=2).flatten())


@pytest.mark.parametrize("tokens", [4, 60, 267, 268, 300, 1300])
def test_an_index_and_its_steady_zone_hold_every_token(tokens: int) -> None:
    one = data(tokens)
    index, (k, v) = build_index(one.k, one.v, CONFIG)
    stored = [[segment.rows(head) for head in range(2)] for segment in index.segments]
    expected, end = 0, CONFIG.sink_tokens
    while (span := next_growth(tokens, end, CONFIG)) is not None:
        expected, end = expected + 1, span.stop
    assert len(stored) == expected == {4: 0, 60: 0, 267: 0, 268: 1, 300: 1, 1300: 3}[tokens]
    assert k.shape[1] >= min(tokens, CONFIG.sink_tokens + CONFIG.window_tokens)
    for rows, given in ((0, one.k), (1, one.v)):
        for head in range(2):
            held = torch.cat([(k, v)[rows][head], *(heads[head][rows] for heads in stored)])
            assert sorted(held.tolist()) == sorted(given[head].tolist())
    assert torch.equal(k[:, :4], one.k[:, :4])
    assert torch.equal(v[:, -1], one.v[:, -1])


def test_a_budget_of_one_has_no_error() -> None:
    """But for values that weigh next to nothing, which only shows where a sink takes the rest."""
    one, config = data(), replace(CONFIG, budget=1.0)
    index, steady = build_index(one.k, one.v, config)
    measured = compare(one.q, one.k, one.v, config, index=index, steady=steady)
    assert measured.relative_error.shape == (3, 6)
    assert measured.mass_exact.shape == measured.mass_estimated.shape == (3, 6)
    assert measured.retrieved_tokens.shape == (3, 2)
    assert measured.bytes.shape == (3,)
    for field in (measured.relative_error, measured.mass_exact, measured.bytes):
        assert field.dtype == torch.float64
    assert float(measured.relative_error.median()) < 1e-5
    assert float(measured.relative_error.max()) < 2 * NEGLIGIBLE_VALUES
    torch.testing.assert_close(measured.mass_exact, torch.ones(3, 6).double(), atol=1e-5, rtol=0)
    assert float(measured.mass_estimated.abs().max()) < 1e-5
    clustered = index.segments.totals.tokens
    assert measured.retrieved_tokens.tolist() == [[clustered] * 2] * 3
    assert bool((measured.bytes >= 2 * clustered * 16 * 4).all())


def test_an_error_is_measured() -> None:
    """Relative to the length of the exact output: where all values are a half of the true ones."""
    one, config = data(), replace(CONFIG, budget=1.0)
    index, (k, v) = build_index(one.k, one.v / 2, config)
    measured = compare(one.q, one.k, one.v, config, index=index, steady=(k, v))
    half = torch.full((3, 6), 0.5).double()
    torch.testing.assert_close(measured.relative_error, half, atol=2 * NEGLIGIBLE_VALUES, rtol=0)
    torch.testing.assert_close(measured.mass_exact, 2 * half, atol=1e-5, rtol=0)


def test_the_true_mass_is_that_of_the_tokens_attended() -> None:
    """With nothing retrieved it is the steady zone's, whatever the step believes."""
    one = data()
    config = replace(
        CONFIG,
        cap=1e-9,
        least=0,
        least_groups=0,
        sure=0.0,
        calm=0.0,
        flat=0.0,
        floor=0,
        outlier_fraction=0.0,
    )
    index, steady = build_index(one.k, one.v, config)
    measured = compare(one.q, one.k, one.v, config, index=index, steady=steady)
    seen = 0
    for step in range(3):
        lse = exact_attention(one.q[step], *steady)[1]
        whole = exact_attention(one.q[step], one.k, one.v)[1]
        # A budget of one token finds no cluster that small, or the odd one.
        for head in range(2):
            if measured.retrieved_tokens[step, head] == 0:
                own, seen = slice(3 * head, 3 * head + 3), seen + 1
                expected = torch.exp(lse - whole)[own]
                found = measured.mass_exact[step, own]
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert seen
    assert float(measured.mass_estimated.max()) > 0.1
