"""Products with whole matrices: compiled ones against float64, and which are chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retrolocal.kernels import linear as chooser
from retrolocal.kernels.linear import linear, linears, linears_reference

compiled = pytest.importorskip("retrolocal.kernels.linear_numba")


def linear_numba(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (result,) = compiled.linears_numba(x, [(weight, bias)])
    return result


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linears_reference(x, [(weight, bias)])[0]


SHAPES = [(1, 1), (2, 7), (5, 64), (129, 333), (512, 96)]
SIXTEEN_BITS = [torch.bfloat16, torch.float16]


def drawn(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """One row, a matrix and a bias."""
    torch.manual_seed(rows)
    shapes = (1, columns), (rows, columns), (rows,)
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_row_is_the_formula(
    shape: tuple[int, int], dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight, bias = drawn(*shape, dtype)
    exact = x.double() @ weight.double().t()
    # Rounded once; sums in float32 are off by what their terms lose.
    error = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 * (x.abs() @ weight.abs().t()).double()
    result = linear_numba(x, weight)
    assert result.dtype == dtype
    assert result.shape == (1, shape[0])
    assert ((result.double() - exact).abs() <= error).all()
    with_bias = linear_numba(x, weight, bias).double()
    error += torch.finfo(dtype).eps / 2 * (exact + bias.double()).abs()
    assert ((with_bias - exact - bias.double()).abs() <= error).all()


@pytest.mark.parametrize("step", [2, 3, 64])
def test_threads_and_pieces_leave_nothing_out(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = drawn(331, 96, torch.bfloat16)
    monkeypatch.setattr(compiled, "PIECE", step * 96)
    answers = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        answers.append(linear_numba(x, weight))
    torch.testing.assert_close(answers[0], linear_reference(x, weight))
    assert all(torch.equal(answers[0], other) for other in answers)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_several_matrices_are_one_piece_of_work(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, one, bias = drawn(331, 96, dtype)
    two, three = torch.randn(7, 96).to(dtype), torch.randn(200, 96).to(dtype)
    matrices = [(one, bias), (two, None), (three, bias[:200])]
    monkeypatch.setattr(compiled, "PIECE", 5 * 96)
    expected = [linear_numba(x, *pair) for pair in matrices]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for _ in range(5):
        results = compiled.linears_numba(x, matrices)
        assert [part.shape for part in results] == [(1, 331), (1, 7), (1, 200)]
        assert all(torch.equal(part, alone) for part, alone in zip(results, expected, strict=True))
    monkeypatch.setattr(chooser, "SMALLEST", (331 + 7 + 200) * 96)
    monkeypatch.setattr(chooser, "linears_reference", lambda *_: pytest.fail("PyTorch was asked"))
    assert all(map(torch.equal, linears(x, matrices), expected))


def test_what_is_not_finite_stays_so() -> None:
    x, weight, _ = drawn(4, 40, torch.bfloat16)
    weight[1, 3], weight[2, 5] = torch.inf, torch.nan
    result = linear_numba(x, weight)[0]
    assert torch.isfinite(result).tolist() == [True, False, False, True]
    assert result[1].isinf()
    assert result[2].isnan()


def test_a_large_matrix_and_one_row_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> Tensor:
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr(chooser, "SMALLEST", 32 * 48)
    x, weight, bias = drawn(32, 48, torch.bfloat16)
    expected = linear_reference(x, weight, bias)
    monkeypatch.setattr(chooser, "linears_reference", refused)
    torch.testing.assert_close(linear(x, weight, bias), expected)
    for other in (
        (x.float(), weight.float()),
        (x.repeat(2, 1), weight),
        (x, weight[2:]),
        (x, weight, bias.float()),
        (x, weight, bias.repeat_interleave(2)[::2]),
    ):
        with pytest.raises(AssertionError):
            linear(*other)


def test_matrices_that_do_not_lie_in_rows() -> None:
    x, weight, bias = drawn(1100, 1100, torch.bfloat16)
    assert weight.numel() > chooser.SMALLEST
    across = weight.t()
    expected = linear_reference(x, across.contiguous(), bias)
    torch.testing.assert_close(linear(x, across, bias), expected, rtol=1e-2, atol=1e-2)
