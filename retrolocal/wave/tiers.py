"""`Tiers`: how much of a context's clustered keys and values stays in RAM, and where the rest lies.

The layers of one context share a limit in bytes. A segment that fits below it stays in RAM and is
read in place. One that does not is read from the file it came from, or written to a file without a
name that goes away with the process; its clusters then come through the wave buffer of its layer.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import StoreError
from ..kernels.gather import Fetch
from ..kernels.segment import Segment, nbytes
from .buffer.buffer import WaveBuffer
from .buffer.prefetch import THREADS, Prefetcher
from .buffer.source import BlockSource, CheckedSource, FileSource, RamSource, Stored
from .buffer.table import Ints
from .store import StoreFigures

GROWN = 1.5
"""The block cache is made anew, up to its limit, when its segments have grown by this factor."""


class Tiers:
    """Shared by the layers of one context; for one thread. `close` gives everything back."""

    def __init__(
        self,
        *,
        ram_bytes: float = math.inf,
        cache_bytes: int = 0,
        folder: Path | None = None,
        readers: int = THREADS,
    ) -> None:
        """`ram_bytes` of blocks stay in RAM; `cache_bytes` are for the block caches of all layers,
        for which so many `readers` read ahead.

        What is written goes to `folder`, by default that for temporary files, which in many
        systems is RAM too.
        """
        self._left = ram_bytes
        self._cache_bytes, self._readers = cache_bytes, readers
        self._spill = SpillFile(Path(tempfile.gettempdir()) if folder is None else folder)
        self._prefetcher: Prefetcher | None = None
        self._stores: list[TieredStore] = []
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def store(self) -> TieredStore:
        """That of the next layer."""
        self._stores.append(TieredStore(self))
        return self._stores[-1]

    @property
    def cache_share(self) -> int:
        """Bytes that the block cache of one layer may have."""
        return self._cache_bytes // max(1, len(self._stores))

    @property
    def prefetcher(self) -> Prefetcher:
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._readers)
        return self._prefetcher

    def claim(self, bytes: int) -> bool:
        """Whether so many bytes more may stay in RAM; they then count."""
        fits = bytes <= self._left
        if fits:
            self._left -= bytes
        return fits

    def release(self, bytes: int) -> None:
        """These do not any more."""
        self._left += bytes

    def spill(self, blocks: Tensor) -> FileSource:
        """Writes blocks to the file; raises StoreError."""
        return self._spill.write(blocks)

    def forget(self, source: FileSource) -> None:
        """What was spilled as `source` is not needed any more."""
        self._spill.free(source)

    def drop(self) -> None:
        """Lets the system forget its copies of what was spilled: the next read is of the disk."""
        self._spill.drop()

    def scratch(self, bytes: int) -> Tensor:
        """Memory, uint8 [bytes], that everybody uses in turn."""
        if self._scratch.numel() < bytes:
            self._scratch = torch.empty(bytes, dtype=torch.uint8)
        return self._scratch[:bytes]

    def foresee_after(self, store: TieredStore) -> None:
        """The layer behind `store` (behind the last, the first) will fetch next."""
        at = self._stores.index(store) + 1
        following = self._stores[at % len(self._stores)]
        if following is not store:
            following.foresee()

    def close(self) -> None:
        """Waits for what is being read; no store may be used afterwards. Idempotent.

        Raises what a thread could not read and nobody has been told yet.
        """
        stores, self._stores = self._stores, []
        prefetcher, self._prefetcher = self._prefetcher, None
        try:
            for store in stores:
                store.close()
        finally:
            if prefetcher is not None:
                prefetcher.close()
            self._spill.close()


class SpillFile:
    """A file without a name for blocks; made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: FileSource | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}
        """Places that are free again, by their length."""
        self._places: dict[FileSource, int] = {}

    def write(self, blocks: Tensor) -> FileSource:
        """Raises StoreError for what the disk does not take."""
        data = blocks.reshape(-1)
        size = data.numel()
        reused = self._free.get(size)
        start = reused.pop() if reused else self._end
        try:
            if self._whole is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._whole = FileSource.temporary(self._folder)
            self._whole.write(start, data.numpy().data)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {size / 2**20:,.0f} MiB of keys and values cannot be written "
                f"({error.strerror}); free the disk, give a shorter text or more --ram"
            ) from None
        self._end = max(self._end, start + size)
        source = self._whole.part(start, size)
        self._places[source] = start
        return source

    def free(self, source: FileSource) -> None:
        """Its place may be written over."""
        start = self._places.pop(source)
        self._free.setdefault(source.bytes, []).append(start)

    def drop(self) -> None:
        """Out of the page cache."""
        if self._whole is not None:
            self._whole.part(0, self._end).forget()

    def close(self) -> None:
        """Nobody may be reading."""
        if self._whole is not None:
            self._whole.close()


@dataclass(slots=True)
class _Held:
    segment: Segment
    """As `append` returned it."""
    source: BlockSource
    near: int
    """Bytes that count as RAM."""
    spilled: FileSource | None = None


class TieredStore:
    """One layer; see the module. A `BlockStore`.

    While everything is in RAM, and known to be what was written, `fetch` is None and there is no
    wave buffer.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._held: list[_Held] = []
        self._buffer: WaveBuffer | None = None
        self._allocated_for = 0
        """Bytes of far segments when the block cache was made."""
        self._last: Ints = np.zeros(0, np.int64)
        """Keys of the last fetch."""
        self._before = StoreFigures()

    def append(self, segment: Segment, stored: Stored | None = None) -> Segment:
        """See `BlockStore.append`."""
        blocks, spilled, source = segment.blocks, None, None
        near = blocks.nbytes if self._tiers.claim(blocks.nbytes) else 0
        if near:
            source = RamSource(blocks)
        elif stored is not None:
            source = stored.open()
        else:
            source = spilled = self._tiers.spill(blocks)
        if stored is not None and stored.check is not None:
            source = CheckedSource(source, stored.check)
        if not near:
            segment = replace(segment, blocks=blocks.to("meta"))
        self._held.append(_Held(segment, source, near, spilled))
        if self._buffer is not None:
            self._add(self._buffer, self._held[-1])
        elif not near or isinstance(source, CheckedSource):
            self._buffer = self._made()
        return segment

    def moved(self, number: int, stored: Stored) -> None:
        """See `BlockStore.moved`."""
        held = self._held[number]
        if held.spilled is None:
            return
        assert self._buffer is not None
        held.source = stored.open()
        self._buffer.move(number, held.source)
        self._tiers.forget(held.spilled)
        held.spilled = None

    @property
    def fetch(self) -> Fetch | None:
        needed = self._buffer is not None and not self._buffer.in_place
        return self._fetch if needed else None

    def whole(self, number: int) -> Segment:
        """See `BlockStore.whole`."""
        held = self._held[number]
        for following in self._held[number + 1 : number + 2]:
            following.source.announce([(0, following.source.bytes)])
        if held.near:
            if isinstance(held.source, CheckedSource):
                held.source.verify(0, held.source.bytes)
            return held.segment
        scratch = self._tiers.scratch(held.source.bytes)
        held.source.read(0, memoryview(scratch.numpy().data))
        return replace(held.segment, blocks=scratch.view(held.segment.blocks.shape))

    def keep(self, segments: int) -> None:
        """See `BlockStore.keep`."""
        if self._buffer is not None:
            self._buffer.keep(segments)
            self._last = self._last[self._last < self._buffer.table.keys]
        for held in self._held[segments:]:
            self._tiers.release(held.near)
            if held.spilled is not None:
                self._tiers.forget(held.spilled)
        del self._held[segments:]

    @property
    def bytes(self) -> int:
        return sum(nbytes(held.segment.blocks) for held in self._held)

    def foresee(self) -> None:
        """Reads ahead what the last fetch asked for and the block cache does not hold any more."""
        if self._buffer is not None and len(self._last):
            self._buffer.prefetch(self._last)

    def figures(self) -> StoreFigures:
        now, before = self._so_far(), self._before
        return replace(
            now,
            hits=now.hits - before.hits,
            fetched=now.fetched - before.fetched,
            read_bytes=now.read_bytes - before.read_bytes,
        )

    def reset_figures(self) -> None:
        self._before = self._so_far()

    def close(self) -> None:
        """Waits for what is being read."""
        if self._buffer is not None:
            self._buffer.close()

    @contextmanager
    def _fetch(self, segments: Ints, heads: Ints, clusters: Ints) -> Iterator[Ints]:
        buffer = self._buffer
        assert buffer is not None
        self._allocate(buffer)
        self._tiers.foresee_after(self)
        self._last = buffer.table.keys_of(segments, heads, clusters)
        with buffer.fetch(self._last) as fetched:
            yield fetched.addresses

    def _made(self) -> WaveBuffer:
        """A wave buffer over everything held."""
        segment = self._held[0].segment
        width = segment.codec.token_bytes(segment.mean_key.shape[1])
        buffer = WaveBuffer(segment.heads, width, self._tiers.prefetcher)
        for held in self._held:
            self._add(buffer, held)
        return buffer

    def _add(self, buffer: WaveBuffer, held: _Held) -> None:
        segment = held.segment
        width = segment.codec.token_bytes(segment.mean_key.shape[1])
        starts = segment.starts.long().numpy() * width
        heads = np.arange(len(starts))[:, None] * segment.tokens * width
        buffer.append(held.source, starts[:, :-1] + heads, np.diff(starts))

    def _allocate(self, buffer: WaveBuffer) -> None:
        far, share = self._far_bytes, self._tiers.cache_share
        if far <= GROWN * self._allocated_for or buffer.bytes >= 0.9 * share:
            return
        self._allocated_for = far
        buffer.allocate(min(share, 2 * far))

    @property
    def _far_bytes(self) -> int:
        return sum(nbytes(held.segment.blocks) for held in self._held if not held.near)

    def _so_far(self) -> StoreFigures:
        if self._buffer is None:
            return StoreFigures()
        counts = self._buffer.statistics()
        hits, late, misses = (int(n.sum()) for n in (counts.hits, counts.late, counts.misses))
        return StoreFigures(
            file_bytes=self._far_bytes,
            cache_bytes=self._buffer.bytes,
            hits=hits,
            fetched=hits + late + misses,
            read_bytes=counts.bytes_fetched + counts.bytes_ahead,
        )
