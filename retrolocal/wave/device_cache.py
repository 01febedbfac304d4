"""The block cache of a GPU: hot clusters of one layer in slots of GPU memory.

A step needs nothing of this but the slot map: it looks clusters up on the device, reads what it
finds in slots and the rest from pinned memory of the host, and lists what it retrieved. Every
`EVERY` steps that list is copied to the host, without waiting; a thread gives it to the policy when
it has arrived; and before a later step what was decided is carried out. All that touches slots goes
into the stream of the steps, in this order: places of clusters that lost their slot are emptied,
the new ones copied, their places written. So a step finds a cluster whole or not at all, and may
find it late.

One thread calls everything; the policy's thread sees only what a round hands it. A round is begun
when the one before has been carried out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.segment import Segment, SegmentTable, SlotMap
from ..kernels.slots import copy_clusters
from .buffer.slots import NONE, BlockCache, slot_classes
from .store import StoreFigures

Ints = NDArray[np.int64]
EVERY = 8
"""Steps from one round to the next; layers take turns."""
LISTED = 4096
"""Clusters per KV head that a step can list; what is beyond is not admitted."""
LEAST_BYTES = 1 << 20
"""A smaller block cache is none."""


@dataclass(frozen=True, slots=True)
class Round:
    """What the policy decided: int64 arrays."""

    lost: Ints
    """Keys that have no slot any more."""
    keys: Ints
    """Keys that get one, ..."""
    slots: Ints
    """... and its address."""


class DeviceBlockCache:
    """See the module. `segments.slots` is the map; `budget` the bytes of slots at most."""

    def __init__(
        self,
        segments: SegmentTable,
        budget: int,
        device: torch.device,
        *,
        layer: int = 0,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`tell` is called when there was memory for fewer slots only."""
        self._segments, self._device, self._layer = segments, device, layer
        self._budget, self._tell = budget, tell
        self._new: list[Segment] = []
        """Those appended since the last step."""
        self._keys_after: list[int] = []
        """Keys of all segments up to each."""
        self._sources, self._lengths = np.zeros(0, np.int64), np.zeros(0, np.int64)
        """Address in the store and bytes of each key."""
        self._cache: BlockCache | None = None
        self._known = 0
        """Keys that there were when the slots were made."""
        self._steps = 0
        self._work: Future[Round] | None = None
        self.admitted, self.admitted_bytes = 0, 0
        """Clusters copied into slots so far."""
        self._earlier = self._before = (0, 0)
        """Looked up and found: under slot maps that are no more, and until the last reset."""

    @property
    def bytes(self) -> int:
        return 0 if self._cache is None else self._cache.bytes

    def append(self, segment: Segment) -> None:
        """The segment that was just appended to the table; its blocks stay where they are."""
        self._new.append(segment)

    def _take_in(self) -> None:
        """Where the clusters of new segments lie; waits for the device, a step needs it first."""
        new, self._new = self._new, []
        for segment in new:
            heads, width = segment.heads, segment.codec.token_bytes(segment.mean_key.shape[1])
            starts = segment.starts.cpu().numpy().astype(np.int64)
            first = np.arange(heads)[:, None] * segment.tokens + starts[:, :-1]
            sources = segment.blocks.data_ptr() + first * width
            self._sources = np.append(self._sources, sources.ravel())
            self._lengths = np.append(self._lengths, (np.diff(starts, axis=1) * width).ravel())
            self._keys_after.append(len(self._sources))

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`; keys from there on will mean something else."""
        self._take_in()
        keys = self._keys_after[segments - 1] if segments else 0
        if keys == len(self._sources):
            return
        del self._keys_after[segments:]
        self._finish()
        self._sources, self._lengths = self._sources[:keys], self._lengths[:keys]
        if self._cache is not None:
            self._cache.forget(keys)
        if self._segments.slots is not None:
            self._segments.slots.places[keys:].zero_()

    @property
    def lengths(self) -> Ints:
        """Bytes of each key."""
        return self._lengths

    def figures(self) -> StoreFigures:
        """Clusters that steps looked up since the last reset; waits for the device."""
        asked, hits = (now - then for now, then in zip(self._counts(), self._before, strict=True))
        return StoreFigures(cache_bytes=self.bytes, hits=hits, fetched=asked)

    def reset_figures(self) -> None:
        self._before = self._counts()

    def _counts(self) -> tuple[int, int]:
        slots = self._segments.slots
        if slots is None:
            return self._earlier
        asked, hits, _ = slots.counts.sum(0).tolist()
        return self._earlier[0] + asked, self._earlier[1] + hits

    def listed(self) -> tuple[int, Ints]:
        """Of what the last step retrieved: how many it found in slots, and the keys of the others.

        Waits for the device.
        """
        slots = self._segments.slots
        if slots is None:
            return 0, np.zeros(0, np.int64)
        keys = _listed(slots.asked.cpu(), slots.counts.cpu())
        return int((keys < 0).sum()), keys[keys >= 0]

    def shrink(self) -> int:
        """Gives half of the slots back, all of them empty then; returns their bytes, 0 for none."""
        given = self.bytes // 2
        if self._cache is None:
            return 0
        self._finish()
        self._budget, self._earlier = given, self._counts()
        self._cache, self._segments.slots, self._known = None, None, 0
        return given

    def before_step(self) -> None:
        """Makes slots when there is what to put in, and carries out a round that is decided."""
        self._take_in()
        keys = len(self._sources)
        if keys and (self._segments.slots is None or keys > 2 * self._known):
            self._finish()
            self._allocate(keys)
        if self._work is not None and self._work.done():
            self._finish()
        if self._work is None and self._cache is not None:
            self._cache.grow(keys)

    def after_step(self) -> None:
        """Begins a round when it is time."""
        self._steps += 1
        slots, cache = self._segments.slots, self._cache
        turn = (self._steps + self._layer) % EVERY == 0
        if not turn or self._work is not None or slots is None or cache is None:
            return
        asked, counts = (_to_host(t) for t in (slots.asked, slots.counts))
        arrived = None
        if self._device.type == "cuda":
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._work = _policies().submit(_decide, cache, self._lengths, asked, counts, arrived)

    def _allocate(self, keys: int) -> None:
        """Slots for half of these keys more; all are empty."""
        room, heads = keys + keys // 2, self._segments[0].heads
        self._earlier = self._counts()
        self._known, self._cache = keys, None
        while self._cache is None and self._budget >= LEAST_BYTES:
            try:
                classes = slot_classes(self._lengths, self._budget, _unit(self._segments[0]))
                self._cache = BlockCache(classes, device=self._device)
            except torch.OutOfMemoryError:
                self._budget //= 2
                self._tell()
        if self._cache is None:
            self._segments.slots = None
            return
        self._segments.slots = SlotMap(
            places=torch.zeros(2 * room, dtype=torch.int64, device=self._device),
            asked=torch.zeros(heads, LISTED, dtype=torch.int64, device=self._device),
            counts=torch.zeros(heads, 3, dtype=torch.int64, device=self._device),
        )

    def _finish(self) -> None:
        """Carries out what was decided; waits for the decision."""
        work, self._work = self._work, None
        slots = self._segments.slots
        if work is None or slots is None:
            return
        decided = work.result()
        if len(decided.lost):
            slots.places.index_fill_(0, self._there(decided.lost), 0)
        if len(decided.keys):
            targets = self._there(decided.slots)
            sources, lengths = self._sources[decided.keys], self._lengths[decided.keys]
            copy_clusters(self._there(sources), targets, self._there(lengths))
            slots.places.index_copy_(0, self._there(decided.keys), targets)
            self.admitted += len(decided.keys)
            self.admitted_bytes += int(lengths.sum())

    def _there(self, numbers: Ints) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(numbers))
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor


def _decide(
    cache: BlockCache,
    lengths: Ints,
    asked: Tensor,
    counts: Tensor,
    arrived: torch.cuda.Event | None,
) -> Round:
    """Runs in the policy's thread."""
    if arrived is not None:
        arrived.synchronize()
    listed = _listed(asked, counts)
    used = cache.lookup(-1 - listed[listed < 0])
    cache.touch(used[used != NONE])
    wanted = listed[listed >= 0]
    wanted = wanted[cache.lookup(wanted) == NONE]
    before = cache.lookup(np.arange(len(lengths)))
    slots = cache.claim(wanted, lengths[wanted])
    keys, slots = wanted[slots != NONE], slots[slots != NONE]
    cache.publish(slots)
    after = cache.lookup(np.arange(len(lengths)))
    return Round(
        lost=np.flatnonzero((before != NONE) & (after == NONE)),
        keys=keys,
        slots=cache.addresses(slots),
    )


def _listed(asked: Tensor, counts: Tensor) -> Ints:
    """What a step listed, of all KV heads; both on the host."""
    rows = zip(asked.numpy(), counts[:, 2].tolist(), strict=True)
    return np.concatenate([row[:count] for row, count in rows])


def _unit(segment: Segment) -> int:
    return segment.codec.token_bytes(segment.mean_key.shape[1])


def _to_host(tensor: Tensor) -> Tensor:
    """A copy that has arrived when what was launched before an event has."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@functools.cache
def _policies() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="block-cache")
