"""Products in float32 of what comes in 16 bits: the same numbers, rounded once."""

from __future__ import annotations

import pytest
import torch

from retrolocal.kernels import widened
from retrolocal.kernels.attention import (
    causal_attention,
    partial_attention,
    partial_attention_reference,
)
from retrolocal.kernels.linear import linears, linears_reference

DTYPES = (torch.bfloat16, torch.float16)


def has(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(widened, "instructions", lambda: frozenset(names))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop goes round more than once."""
    monkeypatch.setattr(widened, "ROWS", 50)
    monkeypatch.setattr(widened, "NUMBERS", 300)
    monkeypatch.setattr(widened, "KEYS", 70)
    monkeypatch.setattr(widened, "FEWEST_QUERIES", 1)
    has(monkeypatch, "avx512_f")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 30), (64, 33), (5, 400)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_rounded_once(
    dtype: torch.dtype, rows: int, columns: int, biased: bool, small_pieces: None
) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(120, columns).to(dtype), torch.randn(rows, columns).to(dtype)
    bias = torch.randn(rows).to(dtype) if biased else None
    assert widened.widens(x)
    [out] = linears(x, [(weight, bias)])
    truth = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert out.dtype == dtype
    step = torch.finfo(dtype).eps / 2
    assert bool(((out.double() - truth).abs() <= step * truth.abs() + 1e-4).all())


@pytest.mark.parametrize(
    ("queries", "keys", "causal"),
    [(3, 3, False), (3, 3, True), (120, 120, False), (120, 120, True), (90, 211, False)],
)
def test_attention_is_rounded_once(
    queries: int, keys: int, causal: bool, small_pieces: None
) -> None:
    torch.manual_seed(queries)
    q, k, v = (torch.randn(2, n, 16).bfloat16() for n in (queries, keys, keys))
    assert widened.widens_attention(q)
    out, lse = partial_attention(q, k, v, scale=0.3, causal=causal)
    wide = (t.float() for t in (q, k, v))
    truth, truth_lse = partial_attention_reference(*wide, scale=0.3, causal=causal)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.float(), truth, rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(lse, truth_lse, rtol=1e-5, atol=1e-5)


def test_a_chunk_behind_others_is_attended_so(small_pieces: None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(h, n, 16).bfloat16() for h, n in ((4, 40), (2, 300), (2, 300)))
    out, lse = causal_attention(q, k, v, scale=0.3)
    wide = (t.float() for t in (q, k, v))
    truth, truth_lse = causal_attention(*wide, scale=0.3)
    torch.testing.assert_close(out.float(), truth, rtol=2**-7, atol=1e-2)
    torch.testing.assert_close(lse, truth_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "bfloat16", "float16", "attention"),
    [
        (("avx2",), True, True, False),
        (("avx2", "avx512_f"), True, True, True),
        (("avx512_f", "avx512_bf16", "avx512_fp16"), True, False, True),
        (("avx512_f", "amx_bf16"), False, True, False),
        ((), False, False, False),
    ],
)
def test_what_a_processor_has_decides(
    names: tuple[str, ...],
    bfloat16: bool,
    float16: bool,
    attention: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has(monkeypatch, *names)
    x = torch.zeros(300, 8)
    assert [widened.widens(x.to(dtype)) for dtype in DTYPES] == [bfloat16, float16]
    assert widened.widens_attention(x[None].bfloat16()) == attention
    assert not widened.widens(x)
    assert not widened.widens(x[:9].bfloat16())
    assert not widened.widens_attention(x[None].half())
    assert not widened.widens_attention(x[None, :9].bfloat16())


def test_few_rows_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, "avx512_f")
    x, weight = torch.randn(20, 48).bfloat16(), torch.randn(9, 48).bfloat16()
    [out], [same] = (call(x, [(weight, None)]) for call in (linears, linears_reference))
    assert torch.equal(out, same)


def test_instructions_are_pytorchs_words() -> None:
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this PyTorch does not tell")
    if torch.cpu.get_capabilities()["architecture"] == "x86_64":
        assert "sse2" in widened.instructions()
    else:
        assert widened.instructions() == frozenset()
