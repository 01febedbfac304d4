"""Products of queries with rows in vector registers, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("numba")

from retrolocal.kernels.jit_numba import jit
from retrolocal.kernels.tiles_numba import (
    LANES,
    QUERIES,
    ROWS,
    WHOLE_LANES,
    add_rows,
    dots,
    highest,
    largest,
    whole_dots,
)

GUARD = 7.0
Array = NDArray[Any]


@jit(entry=True)
def _dots(
    q: Array, first: int, count: int, rows: Array, out: Array, at: int, stored: Array
) -> None:
    dots(q, first, count, rows, len(rows), out, at, stored)


@jit(entry=True)
def _whole_dots(q: Array, steps: Array, first: int, rows: Array, out: Array, at: int) -> None:
    whole_dots(q, steps, first, len(out), rows, len(rows), out, at)


@jit(entry=True)
def _largest(dim: int) -> float:
    return largest(dim)


@jit(entry=True)
def _add_rows(weights: Array, which: Array, rows: Array, total: Array, stored: Array) -> None:
    add_rows(weights, which, rows, len(which), total, stored)


@jit(entry=True)
def _highest(values: Array) -> float:
    return highest(values)


def stored(element: str, rows: int, dim: int) -> tuple[Array, Array]:
    """Random rows as they are stored, and what they stand for in float64."""
    numbers = np.random.default_rng(rows * 1000 + dim)
    x = numbers.standard_normal((rows, dim)).astype(np.float32)
    if element == "int8":
        steps = numbers.integers(-127, 128, (rows, dim), np.int8)
        return steps, steps.astype(np.float64)
    if element == "bfloat16":
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if element == "float16":
        half = x.astype(np.float16)
        return half.view(np.int16), half.astype(np.float64)
    return x, x.astype(np.float64)


def addresses(rows: Array) -> Array:
    """Of the rows, from the last to the first."""
    places = rows.ctypes.data + np.arange(len(rows)) * rows.strides[0]
    return places[::-1].astype(np.int64).copy()


DIMS = (1, LANES - 1, LANES, 3 * LANES + 5, ROWS * LANES, (ROWS + 1) * LANES, 128)
ELEMENTS = ("float32", "bfloat16", "float16", "int8")


@pytest.mark.parametrize("element", ELEMENTS)
def test_products_with_rows_anywhere(element: str) -> None:
    numbers = np.random.default_rng(0)
    for dim in DIMS:
        for count in range(1, 2 * QUERIES + 2):
            for n in (0, 1, ROWS - 1, ROWS, 2 * ROWS + 1):
                rows, meant = stored(element, n, dim)
                q = numbers.standard_normal((count + 2, dim)).astype(np.float32)
                out = np.full((count, n + 3), GUARD, np.float32)
                _dots(q, 1, count, addresses(rows), out, 2, rows.ravel()[:0])
                wanted = q[1 : count + 1].astype(np.float64) @ meant[::-1].T
                scale = max(1.0, float(np.abs(wanted).max(initial=0)))
                assert np.abs(out[:, 2 : n + 2] - wanted).max(initial=0) < 1e-5 * scale
                assert (out[:, :2] == GUARD).all()
                assert (out[:, n + 2 :] == GUARD).all()


@pytest.mark.skipif(not WHOLE_LANES, reason="used on x86 only")
def test_products_of_whole_numbers_are_exact_up_to_the_largest() -> None:
    numbers = np.random.default_rng(2)
    for dim in (WHOLE_LANES, 3 * WHOLE_LANES, 128, 1024):
        top = int(_largest(dim))
        for count in range(1, 2 * QUERIES + 2):
            for n in (0, 1, ROWS - 1, ROWS, 2 * ROWS + 1):
                rows = numbers.integers(-128, 128, (n, dim), np.int8)
                rows[-1:] = -128
                q = numbers.integers(-top, top + 1, (count + 2, dim), np.int16)
                q[1] = -top
                steps = numbers.random(count + 2).astype(np.float32)
                out = np.full((count, n + 3), GUARD, np.float32)
                _whole_dots(q, steps, 1, addresses(rows), out, 2)
                wanted = q[1 : count + 1].astype(np.int64) @ rows[::-1].T.astype(np.int64)
                meant = wanted * steps[1 : count + 1, None].astype(np.float64)
                scale = max(1.0, float(np.abs(meant).max(initial=0)))
                assert np.abs(out[:, 2 : n + 2] - meant).max(initial=0) < 1e-6 * scale
                assert (out[:, :2] == GUARD).all()
                assert (out[:, n + 2 :] == GUARD).all()


@pytest.mark.parametrize("element", ELEMENTS)
def test_weighted_sums_of_rows_anywhere(element: str) -> None:
    numbers = np.random.default_rng(1)
    for dim in DIMS:
        for count in range(1, 2 * QUERIES + 2):
            for n in (0, 1, 5):
                rows, meant = stored(element, n, dim)
                weights = numbers.random((count, 9)).astype(np.float32)
                which = numbers.permutation(9)[:n].astype(np.int64)
                total = np.ones((count + 1, dim), np.float32)
                _add_rows(weights, which, addresses(rows), total[:count], rows.ravel()[:0])
                wanted = 1 + weights[:, which].astype(np.float64) @ meant[::-1]
                scale = max(1.0, float(np.abs(wanted).max()))
                assert np.abs(total[:count] - wanted).max() < 1e-5 * scale
                assert (total[count] == 1).all()


@pytest.mark.parametrize("n", [0, 1, LANES - 1, LANES, 3 * LANES, 5 * LANES + 3])
def test_the_highest_wherever_it_is(n: int) -> None:
    for place in range(n):
        values = -np.arange(1.0, n + 1, dtype=np.float32)
        values[place] = 3.5
        assert _highest(values) == 3.5
    assert _highest(np.full(n, -np.inf, np.float32)) == -np.inf
