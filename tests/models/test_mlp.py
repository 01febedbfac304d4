"""Experts against a loop over all of them, and what putting tokens in order saves."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from retrolocal.models.config import ExpertsConfig
from retrolocal.models.mlp import ExpertMlp


def made(hidden: int, config: ExpertsConfig, dtype: torch.dtype = torch.float32) -> ExpertMlp:
    torch.manual_seed(0)
    mlp = ExpertMlp(hidden, config, "silu").to(dtype)
    for parameter in mlp.parameters():
        parameter.requires_grad_(False)
    return mlp


def naive(mlp: ExpertMlp, x: Tensor) -> Tensor:
    """Every expert over every token, weighted; a token's weight is 0 for those not chosen."""
    shares = torch.softmax(mlp.router(x).float(), dim=-1)
    best, chosen = shares.topk(mlp.per_token, dim=-1)
    if mlp.normalised:
        best = best / best.sum(-1, keepdim=True)
    weights = torch.zeros_like(shares).scatter(1, chosen, best).to(x.dtype)
    out = torch.zeros_like(x)
    for number, expert in enumerate(mlp.experts):
        out += weights[:, number, None] * expert(x)
    return out


def looped(mlp: ExpertMlp, x: Tensor) -> Tensor:
    """A loop over the experts, each looking for its tokens."""
    weights, chosen = mlp._route(x)
    out = torch.zeros_like(x)
    for number, expert in enumerate(mlp.experts):
        rows, places = torch.where(chosen == number)
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, places, None])
    return out


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("per_token", [1, 3, 7])
@pytest.mark.parametrize("tokens", [0, 1, 2, 50])
def test_experts_are_those_of_the_naive_loop(tokens: int, per_token: int, normalised: bool) -> None:
    config = ExpertsConfig(
        count=7, per_token=per_token, intermediate_size=12, normalised=normalised
    )
    mlp, x = made(16, config), torch.randn(tokens, 16)
    torch.testing.assert_close(mlp(x), naive(mlp, x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(looped(mlp, x), naive(mlp, x), atol=1e-6, rtol=1e-5)


def test_an_expert_that_nobody_chose_is_not_touched() -> None:
    config = ExpertsConfig(count=9, per_token=2, intermediate_size=4, normalised=True)
    mlp, calls = made(8, config), list[int]()
    for number, expert in enumerate(mlp.experts):
        expert.register_forward_hook(lambda *_, number=number: calls.append(number))
    x = torch.randn(1, 8)
    mlp(x)
    assert sorted(calls) == sorted(mlp._route(x)[1][0].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 16, 512])
def test_what_it_costs(tokens: int) -> None:
    """Prints processor time per layer of Qwen3-30B-A3B's shape (PERFORMANCE.md)."""
    config = ExpertsConfig(count=128, per_token=8, intermediate_size=768, normalised=True)
    mlp, x = made(2048, config, torch.bfloat16), torch.randn(tokens, 2048).bfloat16()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "grouped": mlp,
        "a loop over experts": partial(looped, mlp),
        "all experts": partial(naive, mlp),
    }
    spent = {}
    for name, forward in ways.items():
        times = []
        for _ in range(3):
            began = time.process_time()
            forward(x)
            times.append(time.process_time() - began)
        spent[name] = f"{1e3 * min(times):.1f} ms"
    print(f"\n{tokens} tokens:", spent)  # noqa: T201 - the figure is what this is for
    torch.testing.assert_close(mlp(x).float(), naive(mlp, x).float(), atol=0.02, rtol=0.05)
