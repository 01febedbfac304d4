"""`slots.copy_clusters` on a GPU: one launch for all clusters that enter the block cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

PIECES = 4
"""Programs per cluster: reads over PCIe are slow, many have to be on their way."""


def copy_clusters_triton(sources: Tensor, targets: Tensor, lengths: Tensor) -> None:
    """See `slots.copy_clusters`. Addresses and lengths are even: a codec's rows and scales are."""
    if len(sources):
        _copy_kernel[(len(sources), PIECES)](sources, targets, lengths, PIECES=PIECES, BLOCK=512)


@triton.jit
def _copy_kernel(sources, targets, lengths, PIECES: tl.constexpr, BLOCK: tl.constexpr):
    """Words of 4 bytes where both addresses allow it, of 2 otherwise; grid (n, PIECES)."""
    i, lanes = tl.program_id(0), tl.arange(0, BLOCK)
    source, target, length = tl.load(sources + i), tl.load(targets + i), tl.load(lengths + i)
    if (source | target | length) % 4 == 0:
        words = length // 4
        at = tl.multiple_of(source, 4).to(tl.pointer_type(tl.int32))
        to = tl.multiple_of(target, 4).to(tl.pointer_type(tl.int32))
        for start in range(tl.program_id(1) * BLOCK, words, PIECES * BLOCK):
            valid = start + lanes < words
            tl.store(to + start + lanes, tl.load(at + start + lanes, mask=valid), mask=valid)
    else:
        halves = length // 2
        short_at = source.to(tl.pointer_type(tl.int16))
        short_to = target.to(tl.pointer_type(tl.int16))
        for start in range(tl.program_id(1) * BLOCK, halves, PIECES * BLOCK):
            valid = start + lanes < halves
            words_16 = tl.load(short_at + start + lanes, mask=valid)
            tl.store(short_to + start + lanes, words_16, mask=valid)
