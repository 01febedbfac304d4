"""Partial attention, its reference and the merge, against float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.kernels import attention
from retrolocal.kernels.attention import (
    causal_attention,
    full_attention,
    partial_attention,
    partial_attention_reference,
)
from retrolocal.kernels.merge import merge


def exact(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax attention in float64; q [H, M, D], k and v [H, N, D], visible [M, N]."""
    scores = q.double() @ k.double().transpose(1, 2) * q.shape[2] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    return torch.softmax(scores, -1) @ v.double(), torch.logsumexp(scores, -1)


def rows(seed: int, heads: int, count: int, dim: int) -> Tensor:
    return torch.randn(heads, count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("function", [partial_attention, partial_attention_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys", "dim"), [(1, 1, 1), (3, 5, 7), (65, 4099, 80)])
def test_matches_float64(
    function: object, dtype: torch.dtype, queries: int, keys: int, dim: int
) -> None:
    assert callable(function)
    q, k, v = (rows(i, 2, n, dim).to(dtype) for i, n in enumerate((queries, keys, keys)))
    out, lse = function(q, k, v, scale=dim**-0.5)
    expected, expected_lse = exact(q, k, v)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("function", [partial_attention, partial_attention_reference])
def test_causal(function: object) -> None:
    assert callable(function)
    q, k, v = (rows(i, 2, 37, 16) for i in range(3))
    out, _ = function(q, k, v, scale=0.25, causal=True)
    expected, _ = exact(q, k, v, torch.ones(37, 37).tril().bool())
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_no_keys_weigh_nothing() -> None:
    q, k = rows(0, 2, 3, 8), rows(1, 2, 0, 8)
    out, lse = partial_attention(q, k, k, scale=1.0)
    assert torch.equal(out, torch.zeros_like(q))
    assert torch.equal(lse, torch.full((2, 3), -math.inf))


@settings(deadline=None, max_examples=40)
@given(
    groups=st.sampled_from([1, 2, 7]),
    kv_heads=st.integers(1, 3),
    tokens=st.integers(1, 70),
    data=st.data(),
)
def test_last_queries_of_a_causal_run(
    groups: int, kv_heads: int, tokens: int, data: st.DataObject
) -> None:
    asking = data.draw(st.integers(1, tokens))
    q = rows(0, groups * kv_heads, asking, 8)
    k, v = rows(1, kv_heads, tokens, 8), rows(2, kv_heads, tokens, 8)
    out, lse = causal_attention(q, k, v, scale=8**-0.5)
    visible = torch.ones(tokens, tokens).tril().bool()[tokens - asking :]
    wide = (t.repeat_interleave(groups, 0) for t in (k, v))
    expected, expected_lse = exact(q, *wide, visible)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(cuts=st.lists(st.integers(0, 50), max_size=4))
def test_merged_parts_are_the_whole(cuts: list[int]) -> None:
    q, k, v = rows(0, 6, 2, 8), rows(1, 3, 50, 8), rows(2, 3, 50, 8)
    edges = [0, *sorted(cuts), 50]
    parts = [
        full_attention(q, k[:, a:b], v[:, a:b], scale=8**-0.5) for a, b in itertools.pairwise(edges)
    ]
    out, lse = merge(*parts)
    whole, whole_lse = full_attention(q, k, v, scale=8**-0.5)
    torch.testing.assert_close(out, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-4)


def test_merging_nothing_gives_zero() -> None:
    empty = (torch.zeros(2, 4), torch.full((2,), -math.inf))
    out, lse = merge(empty, empty)
    assert torch.equal(out, torch.zeros(2, 4))
    assert torch.equal(lse, torch.full((2,), -math.inf))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("kv_heads", "group", "keys", "dim"),
    [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 64, 16), (2, 4, 4099, 80)],
    ids=str,
)
def test_one_query_is_compiled(
    kv_heads: int,
    group: int,
    keys: int,
    dim: int,
    dtype: torch.dtype,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = pytest.importorskip("retrolocal.kernels.attention_numba")
    monkeypatch.setattr(compiled, "ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(
        attention, "full_attention_reference", lambda *_, **__: pytest.fail("asked")
    )
    q = 4 * rows(0, kv_heads * group, 1, dim).to(dtype)
    # As caches hold them: part of an array with room for more.
    k, v = (rows(i, kv_heads, keys + 9, dim).to(dtype)[:, 2 : keys + 2] for i in (1, 2))
    out, lse = full_attention(q, k, v, scale=dim**-0.5)
    expected, expected_lse = exact(q, *(t.repeat_interleave(group, dim=0) for t in (k, v)))
    assert (out.dtype, out.shape, lse.shape) == (dtype, q.shape, q.shape[:2])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=eps)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-5)


def test_one_query_of_keys_that_lie_elsewise_is_the_reference() -> None:
    q = rows(0, 4, 1, 16).to(torch.bfloat16)
    k, v = (rows(i, 2, 66, 16).to(torch.bfloat16)[:, ::2] for i in (1, 2))
    out, _ = full_attention(q, k, v, scale=0.25)
    expected, _ = exact(q, *(t.repeat_interleave(2, dim=0) for t in (k, v)))
    torch.testing.assert_close(out.double(), expected, atol=2e-2, rtol=2e-2)
    none, lse = full_attention(q, k[:, :0], v[:, :0], scale=0.25)
    assert not none.any()
    assert (lse == -math.inf).all()
