"""What the index keeps of a row, and the table that lets compiled code find segments."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.kernels.codecs import Codec, encode_rows
from retrolocal.kernels.segment import Level, Segment, SegmentTable, Totals, nbytes

RELAXED = settings(deadline=None, max_examples=100)
BF16_ROUNDING = 2.0**-8
"""Largest relative error of rounding to bfloat16."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@RELAXED
@given(
    seed=st.integers(0, 10_000),
    dim=st.integers(1, 40),
    exponent=st.floats(-100, 100),
    heavy=st.booleans(),
)
def test_int8_rows_are_within_half_a_step(
    seed: int, dim: int, exponent: float, heavy: bool
) -> None:
    rows = normal(3, 5, dim, seed=seed) * 2.0**exponent
    if heavy:
        rows[..., 0] *= 1000
    encoded, scales = encode_rows(rows, torch.int8)
    assert (encoded.dtype, encoded.shape) == (torch.int8, rows.shape)
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (3, 5, 1))
    assert encoded.is_contiguous()
    step = rows.double().abs().amax(dim=-1, keepdim=True) / 127
    error = (encoded.double() * scales.double() - rows.double()).abs()
    assert bool((error <= step * (0.5 + BF16_ROUNDING)).all())
    assert int(encoded.abs().max()) <= 127


def test_int8_uses_every_step() -> None:
    encoded, scales = encode_rows(torch.arange(-127.0, 128.0), torch.int8)
    assert torch.equal(encoded, torch.arange(-127, 128).to(torch.int8))
    assert scales.tolist() == [1.0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
def test_rows_of_zero_stay_zero(dtype: torch.dtype) -> None:
    encoded, scales = encode_rows(torch.zeros(2, 3, 8), dtype)
    assert not encoded.any()
    assert not scales.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_other_rows_are_rounded_and_have_no_scales(dtype: torch.dtype) -> None:
    rows = normal(8, 3, 2).transpose(0, 2)
    encoded, scales = encode_rows(rows, dtype)
    assert torch.equal(encoded, rows.to(dtype))
    assert encoded.is_contiguous()
    assert (scales.dtype, scales.shape) == (torch.bfloat16, (2, 3, 0))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
def test_a_level_gives_back_its_rows(dtype: torch.dtype) -> None:
    centroids, sums = normal(2, 6, 8), 100 * normal(2, 6, 8, seed=1)
    (keys, key_scales), (values, value_scales) = (encode_rows(x, dtype) for x in (centroids, sums))
    level = Level(
        centroids=keys,
        value_sums=values,
        scales=torch.cat((key_scales, value_scales), dim=-1),
        spreads=torch.zeros(2, 6).bfloat16(),
    )
    tolerance = {torch.int8: 1 / 127, torch.bfloat16: BF16_ROUNDING, torch.float32: 0.0}[dtype]
    for head in range(2):
        for found, rows in ((level.keys(head), centroids[head]), (level.values(head), sums[head])):
            assert found.dtype == torch.float32
            largest = rows.abs().amax(dim=1, keepdim=True)
            assert bool(((found - rows).abs() <= tolerance * largest).all())
    width = {torch.int8: 1, torch.bfloat16: 2, torch.float32: 4}[dtype]
    assert level.bytes == 12 * (2 * 8 * width + (4 if dtype == torch.int8 else 0) + 2)


def segment(tokens: int, clusters: int = 3, groups: int = 2, singles: int = 1) -> Segment:
    """Clusters and groups of no particular content."""

    def level(count: int) -> Level:
        rows = torch.full((2, count, 4), tokens, dtype=torch.float32)
        return Level(
            centroids=rows,
            value_sums=rows + 1,
            scales=torch.empty(2, count, 0).bfloat16(),
            spreads=torch.zeros(2, count).bfloat16(),
        )

    starts = torch.tensor([[0] * clusters + [tokens]] * 2, dtype=torch.int32)
    offsets = torch.tensor([[0] * groups + [clusters - singles]] * 2, dtype=torch.int32)
    return Segment(
        mean_key=torch.zeros(2, 4),
        fine=level(clusters),
        coarse=level(groups),
        starts=starts,
        group_offsets=offsets,
        singles=singles,
        codec=Codec(torch.float32),
        blocks=torch.full((2, tokens * 32), tokens % 256, dtype=torch.uint8),
    )


def test_a_segment_counts_itself() -> None:
    one = segment(9, clusters=5, groups=2, singles=2)
    assert (one.tokens, one.clusters, one.groups, one.grouped) == (9, 5, 2, 3)
    assert one.group_sizes(1).tolist() == [0, 0]
    assert one.fine_bytes == one.fine.bytes + 2 * 6 * 4 + 2 * 4 * 4
    assert one.coarse_bytes == one.coarse.bytes + 2 * 3 * 4
    assert nbytes(one.blocks) == 2 * 2 * 9 * 4 * 4


def described(segments: list[Segment]) -> list[list[int]]:
    """What the rows of a table must be."""
    rows, groups, singles = [], 0, 0
    for one in segments:
        addresses = [tensor.data_ptr() for tensor in one.tensors()]
        counts = [one.clusters, one.groups, one.singles, one.tokens]
        rows.append([*addresses, *counts, groups, singles])
        groups += one.groups
        singles += one.singles
    return rows


SHAPES = [(7, 3, 2, 1), (1, 1, 1, 0), (30, 9, 3, 4)]


@RELAXED
@given(st.lists(st.sampled_from(SHAPES) | st.integers(0, 40), max_size=60))
def test_a_table_is_a_list(actions: list[tuple[int, ...] | int]) -> None:
    """Shapes are appended, numbers are how many to keep; growing past 16 loses nothing."""
    table, expected = SegmentTable(), list[Segment]()
    for action in actions:
        if isinstance(action, int):
            table.keep(action)
            del expected[action:]
        else:
            expected.append(segment(*action))
            table.append(expected[-1])
        assert list(table) == expected
        assert table.rows.tolist() == described(expected)
        assert table.totals == Totals(
            clusters=sum(one.clusters for one in expected),
            groups=sum(one.groups for one in expected),
            singles=sum(one.singles for one in expected),
            tokens=sum(one.tokens for one in expected),
            longest=max((one.tokens for one in expected), default=0),
        )


def test_a_copy_has_its_own_memory() -> None:
    table = SegmentTable()
    for tokens in range(1, 20):
        table.append(segment(tokens))
    copied = copy.deepcopy(table)
    assert copied.rows.tolist() == described(list(copied))
    assert copied.totals == table.totals
    filled = [n for n, one in enumerate(table[0].tensors()) if one.numel()]
    assert not set(copied.rows[:, filled].flatten().tolist()) & set(table.rows.flatten().tolist())
    for mine, theirs in zip(table, copied, strict=True):
        assert mine.singles == theirs.singles
        for one, other in zip(mine.tensors(), theirs.tensors(), strict=True):
            assert torch.equal(one, other)
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
    copied.append(segment(3))
    copied.keep(2)
    assert len(table) == 19


def test_copying_something_that_holds_a_table_twice_copies_it_once() -> None:
    table = SegmentTable()
    table.append(segment(5))
    one, same = copy.deepcopy([table[0], table])
    assert isinstance(same, SegmentTable)
    assert same[0] is one
