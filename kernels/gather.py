"""Keys and values of some clusters, wherever their blocks lie.

A segment whose blocks compute cannot read where they lie has them on PyTorch's meta device: their
shape is known, and a `Fetch` brings the clusters that are wanted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .segment import Segment, ranges

Ints = NDArray[np.int64]


class Fetch(Protocol):
    def __call__(self, segments: Ints, heads: Ints, clusters: Ints) -> AbstractContextManager[Ints]:
        """Addresses int64 [n] of the blocks of n different clusters, valid inside the context.

        Cluster i is number clusters[i] of KV head heads[i] of segment segments[i] and holds at
        least one token. Raises StoreError for what cannot be read.
        """
        ...


def cluster_rows(
    segments: Sequence[Segment], head: int, clusters: Tensor, fetch: Fetch | None = None
) -> tuple[Tensor, Tensor]:
    """K and V [n, D] of clusters of one KV head, int64, numbered over all segments.

    Segment after segment, within one in the order given; float32, or the dtype of a plain codec.
    """
    keys, values, before = [], [], 0
    for number, segment in enumerate(segments):
        inside = clusters[(clusters >= before) & (clusters < before + segment.clusters)] - before
        before += segment.clusters
        if segment.blocks.is_meta:
            assert fetch is not None, "a segment's blocks are elsewhere and nothing fetches them"
            k, v = _fetched_rows(segment, number, head, inside, fetch)
        else:
            starts = segment.starts[head].long()
            k, v = segment.rows(head, ranges(starts[inside], starts[inside + 1]))
        keys.append(k)
        values.append(v)
    return torch.cat(keys), torch.cat(values)


def _fetched_rows(
    segment: Segment, number: int, head: int, clusters: Tensor, fetch: Fetch
) -> tuple[Tensor, Tensor]:
    """Those of clusters of one segment, from the blocks that are fetched of it alone."""
    clusters = clusters[segment.starts[head].diff()[clusters] > 0]
    sizes = segment.starts[head].diff()[clusters]
    width = segment.codec.token_bytes(segment.mean_key.shape[1])
    blocks = torch.empty(int(sizes.sum()) * width, dtype=torch.uint8)
    place = np.full(len(clusters), number)
    with fetch(place, np.full(len(clusters), head), clusters.cpu().numpy()) as addresses:
        at = blocks.data_ptr()
        for address, size in zip(addresses.tolist(), sizes.tolist(), strict=True):
            ctypes.memmove(at, address, size * width)
            at += size * width
    starts = torch.cat((sizes.new_zeros(1), sizes.cumsum(0, dtype=sizes.dtype)))
    tokens = torch.arange(int(starts[-1]), device=starts.device)
    centres = segment.centres(head)[clusters]
    return segment.codec.decode(blocks.to(starts.device), starts, centres, tokens)
