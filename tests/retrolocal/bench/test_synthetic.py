"""Synthetic attention: seeded, of the shape asked for, as sharp as it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retrolocal.bench.synthetic import SINKS, structured_data


def make(**changed: object) -> tuple[Tensor, Tensor, Tensor]:
    settings = {"tokens": 300, "q_heads": 6, "kv_heads": 2, "head_dim": 16, "steps": 3}
    made = structured_data(**{**settings, **changed})  # type: ignore[arg-type]
    return made.q, made.k, made.v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shapes_and_types(dtype: torch.dtype) -> None:
    q, k, v = make(dtype=dtype)
    assert [tuple(x.shape) for x in (q, k, v)] == [(3, 6, 16), (2, 300, 16), (2, 300, 16)]
    assert q.dtype == k.dtype == v.dtype == dtype
    assert all(bool(torch.isfinite(x).all()) for x in (q, k, v))
    assert make()[1].dtype == torch.bfloat16


def test_the_seed_decides() -> None:
    first, same, other = make(seed=5), make(seed=5), make(seed=6)
    for one, again, different in zip(first, same, other, strict=True):
        assert torch.equal(one, again)
        assert not torch.equal(one, different)


def test_the_generator_of_the_program_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(one, other) for one, other in zip(first, make(), strict=True))


def test_heads_differ() -> None:
    q, k, v = make()
    assert not torch.equal(k[0], k[1])
    assert not torch.equal(v[0], v[1])
    assert len({tuple(row) for row in q.flatten(0, 1).tolist()}) == 18


def shares(q: Tensor, k: Tensor) -> Tensor:
    """Share of the tokens that hold 90 % of the mass, the sinks left out, [S * Hq]."""
    group, tokens = q.shape[1] // k.shape[0], k.shape[1]
    scores = torch.einsum("shd,hnd->shn", q.float(), k.float().repeat_interleave(group, dim=0))
    scores[..., list(SINKS)] = -math.inf
    mass = torch.softmax(scores / math.sqrt(k.shape[2]), dim=2).sort(dim=2, descending=True).values
    return ((mass.cumsum(2) < 0.9).sum(2) + 1).flatten() / tokens


def test_gains_are_as_sharp_as_they_say() -> None:
    """About 20 %, 1 % and 0.1 % of the tokens hold nine tenths of what is not the sinks'."""
    for gain, least, most in ((1.0, 0.1, 0.3), (2.0, 0.003, 0.015), (3.0, 0.0001, 0.0015)):
        q, k, _ = make(tokens=16_384, head_dim=64, q_heads=8, steps=8, gain=gain)
        assert least < float(shares(q, k).median()) < most


def test_sinks_weigh_much_and_say_little() -> None:
    q, k, v = make(tokens=4096, head_dim=64, steps=16, gain=2.0, dtype=torch.float32)
    scores = torch.einsum("shd,hnd->shn", q, k.repeat_interleave(3, dim=0)) / 8
    mass = torch.softmax(scores, dim=2).mean((0, 1))
    lengths = v.norm(dim=2)
    assert SINKS[0] == 0
    assert SINKS[1] > 4
    for sink in SINKS:
        assert mass[sink] > 0.02
        assert bool((lengths[:, sink] < 0.05 * lengths.median()).all())
    others = torch.ones(4096, dtype=torch.bool)
    others[list(SINKS)] = False
    assert bool((lengths[:, others] > 0.2 * lengths.median()).all())


@pytest.mark.parametrize("tokens", [1, 2, 8, 14, 15])
def test_short_texts(tokens: int) -> None:
    q, k, v = make(tokens=tokens)
    assert k.shape == v.shape == (2, tokens, 16)
    assert q.shape == (3, 6, 16)
    assert all(bool(torch.isfinite(x).all()) for x in (q, k, v))
    small = v.float().norm(dim=2)[0] < 0.5
    assert [at for at in range(tokens) if small[at]] == [sink for sink in SINKS if sink < tokens]


@pytest.mark.parametrize("dim", [2, 6, 80, 96, 128])
def test_head_dimensions(dim: int) -> None:
    q, k, v = make(tokens=40, head_dim=dim)
    assert q.shape[2] == k.shape[2] == v.shape[2] == dim
    assert all(bool(torch.isfinite(x).all()) for x in (q, k, v))
