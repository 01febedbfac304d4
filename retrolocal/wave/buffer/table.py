"""Which clusters there are, and where each lies in the slow tier: the numbering of keys.

Cluster c of KV head h of a segment of C clusters has the key `first + h * C + c`, where `first`
counts the keys of all segments before. Segments are appended and never change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .source import BlockSource, CheckedSource

Ints = NDArray[np.int64]


class ClusterTable:
    """May be read by any thread while one appends; `keep` needs that nobody reads."""

    def __init__(self, kv_heads: int) -> None:
        self.kv_heads = kv_heads
        self.keys = 0
        self._sources: list[BlockSource] = []
        self._first = np.zeros(1, np.int64)
        """First key of each segment, and the number of all keys."""
        self._clusters = np.zeros(0, np.int64)
        """Of each segment, per KV head."""
        self._bases = np.zeros(0, np.int64)
        """Address of each segment's source; 0: compute cannot read it."""
        self._spans = np.zeros((16, 2), np.int64)
        """Offset and length of each key, in bytes; with room for more."""

    def append(self, source: BlockSource, offsets: Ints, lengths: Ints) -> None:
        """One segment: where in `source` its clusters lie, int64 [H, C] each, in bytes.

        Clusters without tokens have length 0. Raises ValueError for what lies outside the source.
        """
        assert offsets.shape == lengths.shape, (offsets.shape, lengths.shape)
        assert len(offsets) == self.kv_heads, (offsets.shape, self.kv_heads)
        if (offsets < 0).any() or (lengths < 0).any() or (offsets + lengths > source.bytes).any():
            raise ValueError(f"clusters lie outside the {source.bytes:,} bytes of their source")
        stop = self.keys + offsets.size
        if stop > len(self._spans):
            more = np.zeros((max(stop, 2 * len(self._spans)), 2), np.int64)
            more[: self.keys] = self._spans[: self.keys]
            self._spans = more
        self._spans[self.keys : stop] = np.stack((offsets.ravel(), lengths.ravel()), axis=1)
        self._sources.append(source)
        self._bases = np.append(self._bases, source.address or 0)
        self._clusters = np.append(self._clusters, offsets.shape[1])
        self._first = np.append(self._first, stop)
        self.keys = stop

    def move(self, segment: int, source: BlockSource) -> None:
        """The same bytes lie in another source."""
        assert source.bytes == self._sources[segment].bytes
        self._sources[segment] = source
        self._bases[segment] = source.address or 0

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""
        del self._sources[segments:]
        self._bases, self._clusters = self._bases[:segments], self._clusters[:segments]
        self._first = self._first[: segments + 1]
        self.keys = int(self._first[-1])

    def keys_of(self, segments: Ints, heads: Ints, clusters: Ints) -> Ints:
        """Keys of clusters of KV heads of segments, numbered from 0 each."""
        keys: Ints = self._first[segments] + heads * self._clusters[segments] + clusters
        return keys

    def lengths(self, keys: Ints) -> Ints:
        """Bytes of each."""
        lengths: Ints = self._spans[keys, 1]
        return lengths

    def heads(self, keys: Ints) -> Ints:
        """KV head of each."""
        segments = self._segments(keys)
        heads: Ints = (keys - self._first[segments]) // self._clusters[segments]
        return heads

    def addresses(self, keys: Ints) -> Ints:
        """Where each lies in memory that compute can read; 0: nowhere, it has to be fetched."""
        bases = self._bases[self._segments(keys)]
        near = np.flatnonzero(bases)
        bases[near] += self._spans[keys[near], 0]
        return bases

    @property
    def in_place(self) -> bool:
        """Whether compute can read everything where it lies, as far as checks go too."""
        return bool(self._bases.all()) and not self._doubtful()

    def verify(self, keys: Ints) -> None:
        """Has those checked that compute reads where they lie, if they need to be.

        Raises DamagedError.
        """
        doubtful = self._doubtful()
        if doubtful:
            segments = self._segments(keys)
            for number, source in doubtful.items():
                source.verify(*self._spans[keys[segments == number]].T)

    def _doubtful(self) -> dict[int, CheckedSource]:
        return {
            number: source
            for number, source in enumerate(self._sources)
            if isinstance(source, CheckedSource) and self._bases[number] and not source.sure
        }

    def lengths_to_fetch(self) -> Ints:
        """Bytes of all clusters that compute cannot read where they lie."""
        far = np.repeat(self._bases == 0, np.diff(self._first))
        lengths: Ints = self._spans[: self.keys, 1][far]
        return lengths

    def read(self, keys: Ints, addresses: Ints) -> Iterator[int]:
        """Announces clusters, then copies each to its address, which has room for it.

        Counts as it goes: 1, 2, ... Raises StoreError for what cannot be read.
        """
        segments = self._segments(keys)
        for segment in np.unique(segments).tolist():
            spans = self._spans[keys[segments == segment]].tolist()
            self._sources[segment].announce([(offset, length) for offset, length in spans])
        rows = np.column_stack((segments, self._spans[keys], addresses)).tolist()
        for done, (segment, offset, length, address) in enumerate(rows, start=1):
            room = (ctypes.c_ubyte * length).from_address(address)
            self._sources[segment].read(offset, memoryview(room).cast("B"))
            yield done

    def _segments(self, keys: Ints) -> Ints:
        assert not len(keys) or (keys.min() >= 0 and keys.max() < self.keys), "no such cluster"
        return np.searchsorted(self._first, keys, side="right") - 1
