"""Matrices in 8 or 4 bits, group-wise, and products with them: weight-only quantisation.

A row's columns are cut into groups that share a scale and an offset. The layout is the one that
PyTorch's own 4-bit kernel for CPUs reads (`aten::_weight_int4pack_mm_for_cpu` with AVX-512), on
every device: rows in blocks of 64, column by column, row j of a block in the low and row j + 32 in
the high half of a byte. Eight bits are two such planes, so that one kernel serves both:
q = 16 high + low. Many rows of x at once, and processors without that kernel, get the weights
back block by block and multiply as usual. Knows no model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from . import linear as plain

Bits = Literal[4, 8]

BLOCK_ROWS = 64
HALF = BLOCK_ROWS // 2
GROUPS: dict[int, tuple[int, ...]] = {4: (64, 32), 8: (128, 64, 32)}
"""Columns per group by bits; the first that divides the columns is taken."""
UNPACK_FROM: dict[int, int] = {4: 192, 8: 96}
"""Rows of x from which on unpacking costs less than the kernel (measured, PERFORMANCE.md)."""
ROUNDED_BYTES = 2 << 20
"""Weights, as float32, that are quantised at once: about six such arrays are alive then."""
UNPACKED_BYTES = 8 << 20
"""And that are unpacked at once: more rows make products faster."""


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A matrix [N, K]; N is a multiple of 64, K of 32.

    Weight = (plane - 8) * scale + offset for each plane, summed over the planes.
    """

    planes: tuple[Tensor, ...]
    """uint8 [N / 64, K, 32] each: one of 4 bits, or the high and the low half of 8."""
    scales: tuple[Tensor, ...]
    """[K / G, N, 2] for each plane: scale and offset, in the dtype of the products."""

    @property
    def shape(self) -> tuple[int, int]:
        blocks, columns, _ = self.planes[0].shape
        return blocks * BLOCK_ROWS, columns

    @property
    def bits(self) -> Bits:
        return 4 if len(self.planes) == 1 else 8

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scales[0].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.scales[0].dtype

    def to(self, dtype: torch.dtype) -> QuantisedMatrix:
        """For products in `dtype`."""
        return replace(self, scales=tuple(scale.to(dtype) for scale in self.scales))


def fits(rows: int, columns: int) -> bool:
    """Whether a matrix of this shape can be quantised."""
    return rows % BLOCK_ROWS == 0 and columns % GROUPS[4][-1] == 0 and rows * columns > 0


def quantised_bytes(rows: int, columns: int, bits: Bits, *, scale_bytes: int = 2) -> int:
    """Bytes of such a matrix in memory; `scale_bytes` of the dtype of its products."""
    groups = columns // _group(columns, bits)
    return rows * columns * bits // 8 + (bits // 4) * rows * groups * 2 * scale_bytes


def quantise(weight: Tensor, bits: Bits) -> QuantisedMatrix:
    """The nearest matrix in so many bits; weight [N, K] floating, any device.

    Eight bits are symmetric (127 steps to the largest of a group), four reach from the smallest to
    the largest. Scales are rounded to bfloat16 before anything is rounded to them. Works on few
    rows at a time, in float32.
    """
    rows, columns = weight.shape
    assert fits(rows, columns), f"{rows} x {columns} cannot be quantised"
    group, count = _group(columns, bits), bits // 4
    shape = rows // BLOCK_ROWS, columns, HALF
    planes = [weight.new_empty(shape, dtype=torch.uint8) for _ in range(count)]
    scales = [
        weight.new_empty(columns // group, rows, 2, dtype=torch.bfloat16) for _ in range(count)
    ]
    for blocks in _pieces(rows, columns, ROUNDED_BYTES):
        part = slice(blocks.start * BLOCK_ROWS, blocks.stop * BLOCK_ROWS)
        grouped = _grouped(weight[part].float(), group)
        made = _eight_bits(grouped) if bits == 8 else _four_bits(grouped)
        for plane, kept, (nibbles, scale, offset) in zip(planes, scales, made, strict=True):
            plane[blocks] = _pack(nibbles.flatten(1))
            kept[:, part, 0], kept[:, part, 1] = scale.t(), offset.t()
    return QuantisedMatrix(tuple(planes), tuple(scales))


def linear(x: Tensor, matrix: QuantisedMatrix, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the matrix's transpose, plus bias [N]: [T, N] in x's dtype."""
    rows, columns = matrix.shape
    if _kernel_takes(x) and x.shape[0] < UNPACK_FROM[matrix.bits]:
        x = x.contiguous()
        out = sum(
            torch.ops.aten._weight_int4pack_mm_for_cpu(
                x, plane.view(rows, columns // 2), matrix.group, scale
            )
            for plane, scale in zip(matrix.planes, matrix.scales, strict=True)
        )
        assert isinstance(out, Tensor)
    else:
        out = x.new_empty(x.shape[0], rows)
        for blocks in _pieces(rows, columns, UNPACKED_BYTES):
            part = slice(blocks.start * BLOCK_ROWS, blocks.stop * BLOCK_ROWS)
            out[:, part] = plain.linear(x, unpacked(matrix, blocks).to(x.dtype))
    return out if bias is None else out.add_(bias)


def unpacked(matrix: QuantisedMatrix, blocks: slice) -> Tensor:
    """The weights [n * 64, K] of some blocks of rows, in the dtype of the products."""
    part = slice(blocks.start * BLOCK_ROWS, blocks.stop * BLOCK_ROWS)
    numbers = [torch.cat((p[blocks] & 15, p[blocks] >> 4), dim=2) for p in matrix.planes]
    # [n, K, 64] -> [K / G, G, n, 64] beside scales [K / G, 1, n, 64].
    whole = _grouped(_joined(numbers, matrix.dtype), matrix.group).permute(1, 2, 0, 3)
    scale, offset = (_grouped(matrix.scales[-1][:, part, i], BLOCK_ROWS)[:, None] for i in range(2))
    value = whole * scale if matrix.bits == 8 else whole * scale + offset
    rows: Tensor = value.permute(2, 3, 0, 1).reshape(-1, matrix.shape[1])
    return rows


def rows_of(matrix: QuantisedMatrix, numbers: Tensor) -> Tensor:
    """The rows numbers [T] int64 of the matrix, [T, K] in the dtype of the products."""
    block, place = numbers // BLOCK_ROWS, numbers % BLOCK_ROWS
    shift = torch.where(place < HALF, 0, 4).to(torch.uint8)[:, None]
    nibbles = [(plane[block, :, place % HALF] >> shift) & 15 for plane in matrix.planes]
    whole = _grouped(_joined(nibbles, matrix.dtype), matrix.group)
    scale, offset = matrix.scales[-1][:, numbers].permute(2, 1, 0)[..., None]
    value = whole * scale if matrix.bits == 8 else whole * scale + offset
    rows: Tensor = value.flatten(1)
    return rows


@functools.cache
def has_kernel() -> bool:
    """Whether PyTorch has a kernel for this processor that reads this layout."""
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return False
    numbers = torch.arange(2 * BLOCK_ROWS * 32).remainder(251).remainder(16).view(-1, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int(), 1)
    mine = _pack(numbers.to(torch.uint8)).contiguous()
    return torch.equal(packed.flatten(), mine.flatten())


def _joined(nibbles: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Numbers around zero, from one plane of nibbles or two."""
    if len(nibbles) == 1:
        return nibbles[0].to(dtype) - 8
    return ((nibbles[0] << 4) | nibbles[1]).to(dtype) - 128


def _kernel_takes(x: Tensor) -> bool:
    """In float32 the kernel takes 80 times as long as in bfloat16."""
    return x.shape[0] > 0 and x.device.type == "cpu" and x.dtype == torch.bfloat16 and has_kernel()


def _group(columns: int, bits: int) -> int:
    return next(group for group in GROUPS[bits] if columns % group == 0)


def _grouped(rows: Tensor, size: int) -> Tensor:
    """The second dimension cut into runs of `size`: [n, K, ...] -> [n, K / size, size, ...]."""
    return rows.reshape(rows.shape[0], -1, size, *rows.shape[2:])


def _pieces(rows: int, columns: int, size: int) -> Iterator[slice]:
    """Blocks of rows whose weights make about `size` bytes in float32."""
    step = max(1, size // (4 * columns * BLOCK_ROWS))
    for first in range(0, rows // BLOCK_ROWS, step):
        yield slice(first, min(first + step, rows // BLOCK_ROWS))


Plane = tuple[Tensor, Tensor, Tensor]
"""Numbers uint8 [n, K / G, G] below 16, scale and offset float32 [n, K / G]."""


def _eight_bits(weight: Tensor) -> tuple[Plane, ...]:
    """weight float32 [n, K / G, G] = (number - 128) * scale, the number in halves."""
    scale = (weight.abs().amax(dim=2) / 127).bfloat16().float()
    numbers = _nearest(weight, scale, middle=128)
    high = numbers >> 4, 16 * scale, torch.zeros_like(scale)
    return high, (numbers & 15, scale, 8 * scale)


def _four_bits(weight: Tensor) -> tuple[Plane, ...]:
    """weight float32 [n, K / G, G] = (number - 8) * scale + offset."""
    low, high = weight.amin(dim=2), weight.amax(dim=2)
    scale = ((high - low) / 15).bfloat16().float()
    offset = (low + 8 * scale).bfloat16().float()
    return ((_nearest(weight - offset[..., None], scale, middle=8), scale, offset),)


def _nearest(weight: Tensor, scale: Tensor, *, middle: int) -> Tensor:
    # A group of zeros has no scale.
    step = torch.where(scale > 0, scale, 1.0)[..., None]
    numbers = (weight / step).round_().add_(middle)
    return numbers.clamp_(0, 2 * middle - 1).to(torch.uint8)


def _pack(nibbles: Tensor) -> Tensor:
    """uint8 [n, K] below 16 -> [n / 64, K, 32]."""
    blocks = nibbles.view(-1, 2, HALF, nibbles.shape[1])
    return (blocks[:, 0] | (blocks[:, 1] << 4)).transpose(1, 2)
