"""`Codec.decode` compiled for CPUs: a row at a time, where PyTorch gathers the bytes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import carray
from torch import Tensor

from .jit_numba import KINDS, jit, pointer
from .team import together
from .wave_rows_numba import load_coded, turn
from .wave_words_numba import is_int4, is_plain

if TYPE_CHECKING:
    from .codecs import Codec


WORTH = 1024
"""Rows from which on it pays to wake another thread."""


@jit()
def _cluster_of(starts, token):
    """The last cluster that begins at `token` or before: empty ones before it hold nothing."""
    cluster, beyond = np.int64(0), np.int64(len(starts))
    while beyond - cluster > 1:
        middle = (cluster + beyond) // 2
        if starts[middle] <= token:
            cluster = middle
        else:
            beyond = middle
    return cluster


@jit(entry=True)
def _decode_some(stored, blocks, width, scales, starts, centres, tokens, keys, values, first, stop):
    _decode(stored, blocks, width, scales, starts, centres, tokens, keys, values, first, stop)


@jit()
def _decode(stored, blocks, width, scales, starts, centres, tokens, keys, values, first, stop):
    """Keys and values of tokens first ... stop - 1; quickest where clusters follow each other."""
    dim, cluster = keys.shape[1], np.int64(0)
    for i in range(first, stop):
        token = tokens[i]
        if not starts[cluster] <= token < starts[cluster + 1]:
            cluster = _cluster_of(starts, token)
        begin, size = np.int64(starts[cluster]), np.int64(starts[cluster + 1] - starts[cluster])
        base = blocks + 2 * begin * (width + scales)
        key = base + (token - begin) * width
        value = key + size * width
        if is_plain(stored):
            key_row = carray(pointer(key), dim, stored.dtype)
            value_row = carray(pointer(value), dim, stored.dtype)
            for d in range(dim):
                keys[i, d] = key_row[d]
                values[i, d] = value_row[d]
        else:
            scale = base + 2 * (size * width + (token - begin) * scales)
            load_coded(key, scale, keys[i], stored)
            load_coded(value, scale + scales, values[i], stored)
            if is_int4(stored):
                turn(keys[i : i + 1])
            for d in range(dim):
                keys[i, d] += centres[cluster, d]


def decode(
    codec: Codec, blocks: Tensor, starts: Tensor, centres: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """See `Codec.decode`; on PyTorch's number of threads."""
    dim, n = centres.shape[1], len(tokens)
    members = torch.get_num_threads() if n >= WORTH else 1
    dtype = codec.element if codec.plain else torch.float32
    keys, values = torch.empty(n, dim, dtype=dtype), torch.empty(n, dim, dtype=dtype)
    stored = KINDS[codec.element]
    bits = torch.int16 if dtype.itemsize == 2 else dtype
    seen = stored.dtype if codec.plain else np.float32
    into = [t.view(bits).numpy().view(seen) for t in (keys, values)]
    blocks = blocks.contiguous()
    centres = torch.empty(0, dim) if codec.plain else centres.float()
    read = [t.contiguous().numpy() for t in (starts.int(), centres, tokens.long())]

    def share(number: int) -> None:
        first, stop = (n * m // members for m in (number, number + 1))
        _decode_some(
            stored,
            blocks.data_ptr(),
            codec.row_bytes(dim),
            codec.scale_bytes(dim),
            *read,
            *into,
            first,
            stop,
        )

    together(members, share)
    return keys, values
