"""How the store keeps keys and values: a codec per type of element, without state.

A segment's blocks are one uint8 tensor [H, N * W], W = `Codec.token_bytes`: the bytes
starts[c] * W : starts[c + 1] * W of a head are cluster c, so that a cluster is one read. In it lie
the rows of its keys, then those of its values, then their scales, token by token, a key's before
a value's.

- float32, bfloat16, float16: the rows themselves, nothing is lost.
- int8: row = scale * step, 127 steps up to the row's largest magnitude, one bfloat16 scale a row.
- int4 (two codes a byte, so uint8): a scale for every `group_dims` dimensions, times one of 16
  levels that lie closer together near 0, where most numbers are: level(code) = x (1 + 0.4 x^2) /
  1.4, x = (2 code - 15) / 15. Of a few scales up to the group's largest magnitude the one with the
  least square error is taken. In a byte the lower four bits hold dimension j of a group, the upper
  ones j + group_dims / 2. Keys are rotated first (see `rotate`), which spreads what few channels
  hold over all; of values it made the error larger (PERFORMANCE.md).

What is coded of a key is its difference to the centre of its cluster: the centroid as the index
keeps it, the segment's mean key added. Where clusters are narrow that is a small difference, and
its error as small; scores against centres are there already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .compiled import compiled

PLAIN = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CODED = {"int8": torch.int8, "int4": torch.uint8}
LINEAR, CUBIC = 1 / (7.5 * 1.4), 0.4 / (7.5**3 * 1.4)
"""level(code) = LINEAR x + CUBIC x^3, x = code - 7.5."""
SHRUNK = (0.8, 0.87, 0.94, 1.0)
"""Scales that are tried for a group, in units of its largest magnitude."""
LEAST = torch.finfo(torch.float32).tiny
"""Instead of a scale of 0."""


@dataclass(frozen=True, slots=True)
class Codec:
    """See the module."""

    element: torch.dtype
    """float32, bfloat16, float16, int8, or uint8 for int4."""

    @classmethod
    def of(cls, store_type: str, dtype: torch.dtype) -> Codec:
        """`int8`, `int4`, or `bf16`: as they come, in `dtype`."""
        return cls(CODED.get(store_type, dtype))

    @property
    def name(self) -> str:
        return next(name for name, of in (PLAIN | CODED).items() if of == self.element)

    @property
    def plain(self) -> bool:
        """Whether nothing is lost."""
        return self.element.is_floating_point

    @property
    def turned(self) -> bool:
        """Whether what is coded of a key is rotated."""
        return self.element == torch.uint8

    def row_bytes(self, dim: int) -> int:
        """Of a key (or value) of `dim` dimensions, an even number, without its scales."""
        return dim // 2 if self.element == torch.uint8 else dim * self.element.itemsize

    def scale_bytes(self, dim: int) -> int:
        """Of the scales of a key (or value)."""
        if self.plain:
            return 0
        return 2 * (dim // group_dims(dim)) if self.element == torch.uint8 else 2

    def token_bytes(self, dim: int) -> int:
        """Of a token of one KV head."""
        return 2 * (self.row_bytes(dim) + self.scale_bytes(dim))

    def encode(self, k: Tensor, v: Tensor, starts: Tensor, centres: Tensor) -> Tensor:
        """k, v [H, N, D] in cluster order, starts [H, C + 1], centres float32 [H, C, D].

        Returns blocks, uint8 [H, N * W].
        """
        heads, tokens, dim = k.shape
        blocks = torch.empty(
            heads, tokens * self.token_bytes(dim), dtype=torch.uint8, device=k.device
        )
        every = torch.arange(tokens, device=k.device)
        for head in range(heads):
            keys, values = k[head], v[head]
            if not self.plain:
                keys = keys.float() - centres[head][_cluster_of(starts[head], every)]
            if self.turned:
                keys = rotate(keys)
            rows, scales = zip(self._encoded(keys), self._encoded(values), strict=True)
            whole = torch.cat((*rows, *scales), dim=1)
            places, unit = self._places(starts[head], every, dim)
            blocks[head].view(unit)[places] = whole.view(unit)
        return blocks

    def decode(
        self, blocks: Tensor, starts: Tensor, centres: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """K and V [n, D] of some tokens (int64 [n], in cluster order) of one KV head.

        blocks uint8 [N * W], starts int32 [C + 1], centres float32 [C, D]. The result is float32,
        or of the plain codec's dtype. On a CPU it is compiled.
        """
        if blocks.device.type == "cpu" and compiled():
            from .codecs_numba import decode

            return decode(self, blocks, starts, centres, tokens)
        return self.decode_reference(blocks, starts, centres, tokens)

    def decode_reference(
        self, blocks: Tensor, starts: Tensor, centres: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`decode` in plain PyTorch, on any device."""
        dim = centres.shape[1]
        places, unit = self._places(starts, tokens, dim)
        row, scale = self.row_bytes(dim), self.scale_bytes(dim)
        whole = blocks.view(unit)[places].view(torch.uint8)
        *rows, key_scales, value_scales = torch.split(whole, [row, row, scale, scale], dim=1)
        keys, values = (
            self._decoded(codes, scales)
            for codes, scales in zip(rows, (key_scales, value_scales), strict=True)
        )
        if self.turned:
            keys = rotate(keys)
        if not self.plain:
            keys += centres[_cluster_of(starts, tokens)]
        return keys, values

    def _encoded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows [N, D] -> their bytes [N, row_bytes] and those of their scales."""
        if self.plain:
            return rows.to(self.element).contiguous().view(torch.uint8), _no_bytes(rows)
        rows = rows.float()
        if self.element == torch.int8:
            steps, scales = encode_rows(rows, torch.int8)
            return steps.view(torch.uint8), scales.view(torch.uint8)
        codes, scales = _four_bits(rows)
        return _packed(codes), scales.view(torch.uint8)

    def _decoded(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The inverse of `_encoded`."""
        if self.plain:
            return codes.contiguous().view(self.element)
        factors = scales.contiguous().view(torch.bfloat16).float()
        if self.element == torch.int8:
            return codes.view(torch.int8) * factors
        x = _unpacked(codes, factors.shape[1]) - 7.5
        return (x * (LINEAR + CUBIC * x * x) * factors[..., None]).flatten(1)

    def _places(self, starts: Tensor, tokens: Tensor, dim: int) -> tuple[Tensor, torch.dtype]:
        """Where a token's bytes are, in units of a dtype: int64 [n, W / unit] in `blocks`."""
        cluster = _cluster_of(starts, tokens)
        first, size = starts[cluster].long(), starts.diff()[cluster].long()
        row, scales = self.row_bytes(dim), 2 * self.scale_bytes(dim)
        unit = math.gcd(row, scales, 8)
        base, parts, before = first * self.token_bytes(dim), [], 0
        for width in (row, row, scales):
            inside = torch.arange(0, width, unit, device=tokens.device)
            begin = base + size * before + (tokens - first) * width
            parts.append((begin[:, None] + inside) // unit)
            before += width
        return torch.cat(parts, dim=1), UNITS[unit]


UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def group_dims(dim: int) -> int:
    """Dimensions that share a scale of int4: 32, or as many as divide `dim` evenly."""
    return math.gcd(dim, 32)


def rotate(rows: Tensor) -> Tensor:
    """rows float32 [..., D] times the orthonormal Hadamard matrix, which is its own inverse.

    Of a D that is no power of two: in blocks of the largest power that divides it.
    """
    size = rows.shape[-1] & -rows.shape[-1]
    turned: Tensor = rows.reshape(-1, size)
    half = 1
    while half < size:
        pairs = turned.view(-1, size // (2 * half), 2, half)
        one, other = pairs[:, :, 0], pairs[:, :, 1]
        turned = torch.stack((one + other, one - other), dim=2).view(-1, size)
        half *= 2
    scaled: Tensor = turned * size**-0.5
    return scaled.view(rows.shape)


def encode_rows(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """rows float32 [..., D] -> rows in `dtype` and scales bfloat16 [..., 1] ([..., 0] if not int8).

    int8 is symmetric per row: 127 steps up to the row's largest magnitude. With the scale before
    it was rounded, |row - decoded| <= scale * (1/2 + 2^-8).
    """
    if dtype != torch.int8:
        return rows.to(dtype).contiguous(), rows.new_empty((*rows.shape[:-1], 0)).bfloat16()
    scales = (rows.abs().amax(dim=-1, keepdim=True) / 127).bfloat16()
    # bfloat16 may have rounded the scale down: the largest value then needs a step more.
    steps = torch.round(rows / scales.float().clamp(min=LEAST)).clamp(-127, 127)
    return steps.to(torch.int8).contiguous(), scales


def _four_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows float32 [N, D] -> codes 0 ... 15, uint8 [N, groups, dims], and scales bfloat16.

    The scales are [N, groups]. |row - decoded| <= 0.1 scale within scale, beyond that
    |row| - scale, and scale is at least 0.79 of the group's largest magnitude.
    """
    grouped = rows.reshape(len(rows), -1, group_dims(rows.shape[1]))
    x = torch.arange(16, device=rows.device) - 7.5
    levels = x * (LINEAR + CUBIC * x * x)
    between = (levels[1:] + levels[:-1]) / 2
    largest, least = grouped.abs().amax(dim=2, keepdim=True), None
    for share in SHRUNK:
        tried = (largest * share).bfloat16()
        factors = tried.float()
        nearest = torch.bucketize(grouped / factors.clamp(min=LEAST), between, out_int32=True)
        error = (levels[nearest] * factors - grouped).square().sum(dim=2, keepdim=True)
        if least is None:
            least, codes, scales = error, nearest, tried
            continue
        better = error < least
        least = torch.where(better, error, least)
        codes, scales = torch.where(better, nearest, codes), torch.where(better, tried, scales)
    return codes.to(torch.uint8), scales[..., 0].contiguous()


def _packed(codes: Tensor) -> Tensor:
    """Codes [N, groups, dims] -> uint8 [N, groups * dims / 2]."""
    low, high = codes.chunk(2, dim=2)
    return (low | high << 4).flatten(1)


def _unpacked(packed: Tensor, groups: int) -> Tensor:
    """The inverse, float32."""
    grouped = packed.reshape(len(packed), groups, packed.shape[1] // groups)
    return torch.cat((grouped & 15, grouped >> 4), dim=2).float()


def _cluster_of(starts: Tensor, tokens: Tensor) -> Tensor:
    """The cluster that each token (in cluster order) is in; empty ones hold none."""
    return torch.searchsorted(starts, tokens.to(starts.dtype), right=True) - 1


def _no_bytes(rows: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], 0), dtype=torch.uint8)
