"""What the store keeps of keys and values: sizes, places, and how far off they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.kernels.codecs import Codec, group_dims, rotate

RELAXED = settings(deadline=None, max_examples=60)
BF16_ROUNDING = 2.0**-8
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODECS = [Codec(dtype) for dtype in (*FLOATS.values(), torch.int8, torch.uint8)]
DIMS = st.sampled_from([2, 6, 16, 64, 80, 96, 128])


@dataclass(frozen=True)
class Rows:
    k: Tensor
    """[H, N, D]; v likewise."""
    v: Tensor
    starts: Tensor
    """int32 [H, C + 1], the same lengths of clusters in another order for each head."""
    centres: Tensor
    """float32 [H, C, D]."""

    def residual(self, head: int) -> Tensor:
        """Keys less their centres, float64 [N, D]."""
        sizes = self.starts[head].diff().long()
        return self.k[head].double() - self.centres[head].double().repeat_interleave(sizes, dim=0)


def rows(seed: int, sizes: Sequence[int], dim: int, exponent: float = 0.0) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 2.0**exponent

    orders = (list(sizes), list(reversed(sizes)))
    starts = torch.tensor([[0, *torch.tensor(own).cumsum(0).tolist()] for own in orders]).int()
    centres = 10 * normal(2, len(sizes), dim)
    lengths = starts.diff().long()
    near = torch.stack([centres[h].repeat_interleave(lengths[h], dim=0) for h in range(2)])
    k, v = near + normal(2, sum(sizes), dim), normal(2, sum(sizes), dim)
    k[..., 0] *= 3
    return Rows(k, v, starts, centres)


def decoded(codec: Codec, blocks: Tensor, made: Rows, head: int) -> tuple[Tensor, Tensor]:
    every = torch.arange(made.k.shape[1])
    return codec.decode(blocks[head], made.starts[head], made.centres[head], every)


SIZES = st.lists(st.sampled_from([0, 1, 2]) | st.integers(0, 40), min_size=1, max_size=8).filter(
    lambda sizes: sum(sizes) > 0
)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@RELAXED
@given(seed=st.integers(0, 999), sizes=SIZES, dim=DIMS, exponent=st.floats(-20, 10))
def test_a_row_comes_back_within_the_stated_error(
    codec: Codec, seed: int, sizes: list[int], dim: int, exponent: float
) -> None:
    made = rows(seed, sizes, dim, 0.0 if codec.element == torch.float16 else exponent)
    k, v = (t.to(codec.element if codec.plain else torch.float32) for t in (made.k, made.v))
    blocks = codec.encode(k, v, made.starts, made.centres)
    assert (blocks.dtype, blocks.is_contiguous()) == (torch.uint8, True)
    assert blocks.shape == (2, made.k.shape[1] * codec.token_bytes(dim))
    for head in range(2):
        keys, values = decoded(codec, blocks, made, head)
        if codec.plain:
            assert torch.equal(keys, k[head])
            assert torch.equal(values, v[head])
            continue
        assert keys.dtype == values.dtype == torch.float32
        # Adding the centre again rounds once more, at the magnitude of a key.
        rounding = made.k[head].abs().amax() * 2.0**-22
        of_keys = made.residual(head), keys.double() - made.k[head]
        if codec.turned:
            of_keys = rotate(of_keys[0]), rotate(of_keys[1])
        assert_within(codec, *of_keys, rounding)
        assert_within(codec, made.v[head].double(), values.double() - made.v[head], 0.0)


def assert_within(codec: Codec, coded: Tensor, error: Tensor, rounding: Tensor | float) -> None:
    """int8: half a step of every row; int4: by level within the scale, and beyond what is left."""
    if codec.element == torch.int8:
        step = coded.abs().amax(dim=1, keepdim=True) / 127
        assert bool((error.abs() <= step * (0.5 + BF16_ROUNDING) + rounding).all())
        return
    size = group_dims(coded.shape[1])
    coded, error = coded.unflatten(1, (-1, size)), error.unflatten(1, (-1, size))
    largest = coded.abs().amax(dim=2, keepdim=True)
    within = coded.abs() <= 0.79 * largest
    bound = torch.where(within, 0.111 * largest, 0.21 * largest)
    assert bool((error.abs() <= bound + rounding * size**0.5 + 1e-5 * largest).all())


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@RELAXED
@given(seed=st.integers(0, 999), sizes=SIZES, dim=DIMS, data=st.data())
def test_some_tokens_are_those_of_all(
    codec: Codec, seed: int, sizes: list[int], dim: int, data: st.DataObject
) -> None:
    made = rows(seed, sizes, dim)
    blocks = codec.encode(made.k, made.v, made.starts, made.centres)
    some = torch.tensor(
        data.draw(st.lists(st.integers(0, made.k.shape[1] - 1), max_size=20)), dtype=torch.int64
    )
    for head in range(2):
        found = codec.decode(blocks[head], made.starts[head], made.centres[head], some)
        for one, all_ in zip(found, decoded(codec, blocks, made, head), strict=True):
            assert torch.equal(one, all_[some])


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@RELAXED
@given(seed=st.integers(0, 999), sizes=SIZES, dim=DIMS)
def test_compiled_rows_are_those_of_the_reference(
    codec: Codec, seed: int, sizes: list[int], dim: int
) -> None:
    made = rows(seed, sizes, dim)
    blocks = codec.encode(made.k, made.v, made.starts, made.centres)
    every = torch.arange(made.k.shape[1])
    for head in range(2):
        stored = blocks[head], made.starts[head], made.centres[head], every
        for one, other in zip(codec.decode(*stored), codec.decode_reference(*stored), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_cluster_is_one_run_of_bytes(codec: Codec) -> None:
    """Its bytes decode to it wherever they lie, and nothing else does."""
    made = rows(3, [5, 0, 1, 30, 7], 64)
    blocks = codec.encode(made.k, made.v, made.starts, made.centres)
    width = codec.token_bytes(64)
    for head in range(2):
        whole = decoded(codec, blocks, made, head)
        for cluster in range(5):
            first, last = made.starts[head, cluster : cluster + 2].tolist()
            alone = codec.decode(
                blocks[head, first * width : last * width].clone(),
                torch.tensor([0, last - first]),
                made.centres[head, cluster : cluster + 1],
                torch.arange(last - first),
            )
            for one, all_ in zip(alone, whole, strict=True):
                assert torch.equal(one, all_[first:last])


def test_int8_by_hand() -> None:
    """One cluster of two tokens: keys, values, then the scales, a key's before a value's."""
    centres = torch.tensor([[[1.0, 1.0]]])
    k = torch.tensor([[[1.0 + 127, 1.0 - 64], [1.0, 1.0 - 63.5]]])
    v = torch.tensor([[[254.0, -2.0], [0.0, 0.0]]])
    codec = Codec(torch.int8)
    blocks = codec.encode(k, v, torch.tensor([[0, 2]]), centres)
    assert blocks[0, :8].view(torch.int8).tolist() == [127, -64, 0, -127, 127, -1, 0, 0]
    assert blocks[0, 8:].view(torch.bfloat16).tolist() == [1.0, 2.0, 0.5, 0.0]


def test_int4_by_hand() -> None:
    """Numbers that are levels; four low bits come first, keys are rotated, values are not."""
    codes = torch.tensor([15, 0, 7, 9])
    x = (2 * codes - 15) / 15
    row = 8 * x * (1 + 0.4 * x * x) / 1.4
    codec = Codec(torch.uint8)
    zero, starts = torch.zeros(1, 1, 4), torch.tensor([[0, 1]])
    blocks = codec.encode(rotate(row)[None, None], row[None, None], starts, zero)
    assert codec.token_bytes(4) == blocks.shape[1] == 2 * (2 + 2)
    packed = [15 | 7 << 4, 0 | 9 << 4]
    assert blocks[0, :4].tolist() == [*packed, *packed]
    assert blocks[0, 4:].view(torch.bfloat16).tolist() == [8.0, 8.0]


@pytest.mark.parametrize("codec", [Codec(torch.int8), Codec(torch.uint8)], ids=["int8", "int4"])
def test_nothing_stays_nothing(codec: Codec) -> None:
    zeros, starts = torch.zeros(1, 3, 64), torch.tensor([[0, 3]])
    blocks = codec.encode(zeros, zeros, starts, torch.zeros(1, 1, 64))
    keys, values = codec.decode(blocks[0], starts[0], torch.zeros(1, 64), torch.arange(3))
    assert torch.equal(keys, zeros[0])
    assert torch.equal(values, zeros[0])


@pytest.mark.parametrize(("name", "most"), [("bf16", 56), ("int8", 30), ("int4", 16)])
def test_a_token_of_a_real_model(name: str, most: int) -> None:
    """Qwen2.5-7B: 28 layers of 4 KV heads of 128 dimensions."""
    size = 28 * 4 * Codec.of(name, torch.bfloat16).token_bytes(128)
    assert 0.9 * most * 1024 < size <= most * 1024


def test_rotation_spreads_one_channel_and_comes_back() -> None:
    rows = torch.zeros(2, 96)
    rows[0, 5] = 8.0
    turned = rotate(rows)
    assert turned[0, :32].abs().tolist() == pytest.approx([8 / 32**0.5] * 32)
    assert not turned[0, 32:].any()
    torch.testing.assert_close(rotate(turned), rows, atol=1e-6, rtol=0)


def test_rotation_is_what_makes_four_bits_enough() -> None:
    """Channels that dwarf all others, as in the keys of real models."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, 500, 128, generator=generator)
    k[..., ::32] *= 30
    starts, centres = torch.tensor([[0, 500]]), torch.zeros(1, 1, 128)
    blocks = Codec(torch.uint8).encode(k, k, starts, centres)
    keys, plain = Codec(torch.uint8).decode(blocks[0], starts[0], centres[0], torch.arange(500))
    query = torch.randn(128, generator=generator)
    query[::32] /= 30
    error, without = (((rows - k[0]) @ query).norm() for rows in (keys, plain))
    assert error < 0.5 * without


@pytest.mark.parametrize("dtype", FLOATS.values(), ids=FLOATS)
def test_names(dtype: torch.dtype) -> None:
    plain = Codec.of("bf16", dtype)
    assert (plain.element, plain.plain) == (dtype, True)
    assert (
        plain.name
        == {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[
            str(dtype).removeprefix("torch.")
        ]
    )
    for name in ("int8", "int4"):
        assert Codec.of(name, dtype).name == name
        assert not Codec.of(name, dtype).plain
