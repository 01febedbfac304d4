"""`WaveBuffer`: the clusters of one layer behind one `fetch`, wherever they lie.

What lies in memory that compute can read is not copied. Everything else comes through the block
cache, or, when that is full of what the same step reads, through memory of the step's own.
"""

from __future__ import annotations

import copy
import functools
import threading
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from ...errors import StoreError
from .policy import DEFAULT, PolicyName, Slots
from .prefetch import Prefetcher
from .slots import LINE, NONE, BlockCache, slot_classes
from .source import BlockSource
from .statistics import BufferStatistics
from .table import ClusterTable, Ints

CHUNK = 32
"""Clusters that one job of a thread reads: enough to keep a disk busy."""
SPARE = 2
"""Pieces of memory of ended steps that are kept for others."""
_NONE: Ints = np.zeros(0, np.int64)


@dataclass(slots=True)
class _Reading:
    """Clusters that one fetch or one job reads, in order."""

    keys: Ints = field(default_factory=lambda: _NONE)
    slots: Slots = field(default_factory=lambda: _NONE)
    """LOADING until the reading ends; `NONE`: it goes to a step's own memory."""
    done: int = 0
    """The first `done` are read."""
    begun: bool = False


@dataclass(slots=True)
class Fetched:
    """The clusters of one step; a context manager, or call `release`."""

    addresses: Ints
    """Where each key of the fetch begins, in its order; valid until `release`."""
    _buffer: WaveBuffer
    _pinned: Slots = field(default_factory=lambda: _NONE)
    _used: Slots = field(default_factory=lambda: _NONE)
    """Pinned slots whose use counts for the policy."""
    _memory: Tensor | None = None
    """Of clusters that have no slot."""

    def release(self) -> None:
        """The step has read what it wanted. Idempotent."""
        if len(self._pinned) or self._memory is not None:
            self._buffer._release(self)
            self._pinned, self._used, self._memory = _NONE, _NONE, None

    def __enter__(self) -> Fetched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class WaveBuffer:
    """See the module. One layer; its threads are shared with other layers.

    *Who may call what.* `fetch` and `prefetch` may be called by any thread, several steps may be
    under way. `append`, `move`, `allocate` and `keep` belong to the thread that changes the
    context, and to moments at which no step is under way; all but `append` wait for the threads.

    *What orders a read before its use.* A slot's bytes are written by the one thread that claimed
    it, outside the lock; then, under the lock, the slot becomes READY. `fetch` returns when it has
    seen, under the lock, that all its slots are READY: all bytes were written before.

    *Why a slot may be reused.* A slot is given up under the lock, when it is READY and nobody has
    pinned it. `fetch` pins its slots before it lets go of the lock, also those that are still being
    read, and `Fetched.release` unpins them. So an address never changes its meaning before
    `release`, and no thread ever writes where a step reads.

    *What waits for what.* `prefetch` never waits: the threads take what they can, the rest is
    forgotten. A prediction that no thread has begun to read when its step fetches is void; the
    step reads itself what it needs of it, and waits for threads only where they have begun. So a
    step waits for what was not predicted, or not in time. Choosing what to give up is left to the
    threads, after a step, as long as they keep up.

    *Failures.* What a fetch reads itself and cannot, it raises, and leaves nothing pinned. What a
    thread cannot read is raised, once, by the next `fetch` or `close`. Either way the clusters
    count as not there, and the next fetch tries again.

    *close* waits until no thread is reading for this buffer, however long that takes, then gives
    the memory back. Steps under way must have released theirs. A second call does nothing.
    """

    def __init__(
        self,
        kv_heads: int,
        token_bytes: int,
        prefetcher: Prefetcher,
        *,
        policy: PolicyName = DEFAULT,
    ) -> None:
        """`token_bytes`: of one token's K and V in the store, which slots' lengths follow."""
        self.table = ClusterTable(kv_heads)
        self._token_bytes, self._prefetcher, self._policy = token_bytes, prefetcher, policy
        self._changed = threading.Condition()
        self._cache = BlockCache([], policy)
        self._ahead = np.zeros(0, np.bool_)
        """Of each slot: it was read ahead and no step has used it yet."""
        self._released: list[tuple[Slots, Slots]] = []
        """Pinned and used slots of steps that have ended, not yet unpinned."""
        self._spare: list[Tensor] = []
        self._loading = 0
        """Reads under way, of fetches and of threads."""
        self._step = 0
        """Fetches that have begun: a prediction is for the next one."""
        self._failure: BaseException | None = None
        self._closed = False
        self._statistics = BufferStatistics(
            hits=np.zeros(kv_heads, np.int64),
            late=np.zeros(kv_heads, np.int64),
            misses=np.zeros(kv_heads, np.int64),
        )

    @property
    def bytes(self) -> int:
        """Of the block cache."""
        return self._cache.bytes

    def append(self, source: BlockSource, offsets: Ints, lengths: Ints) -> None:
        """See `ClusterTable.append`."""
        with self._changed:
            self.table.append(source, offsets, lengths)
            self._cache.grow(self.table.keys)

    def move(self, segment: int, source: BlockSource) -> None:
        """See `ClusterTable.move`."""
        with self._changed:
            self._quiet()
            self.table.move(segment, source)

    @property
    def in_place(self) -> bool:
        """See `ClusterTable.in_place`."""
        return self.table.in_place

    def allocate(self, capacity: int) -> None:
        """Makes the block cache anew: at most `capacity` bytes, slots after what was appended."""
        classes = slot_classes(self.table.lengths_to_fetch(), capacity, self._token_bytes)
        with self._changed:
            self._quiet()
            assert not self._cache.pinned, "a step is under way"
            # The old one goes first: there is memory for one.
            self._cache = BlockCache([], self._policy)
            self._cache = BlockCache(classes, self._policy)
            self._cache.grow(self.table.keys)
            self._ahead = np.zeros(self._cache.slots, np.bool_)

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""
        with self._changed:
            self._quiet()
            self.table.keep(segments)
            self._cache.forget(self.table.keys)

    def fetch(self, keys: Ints) -> Fetched:
        """Brings clusters to where compute can read them; see the class. Each key at most once.

        Raises StoreError for what cannot be read, DamagedError for what is not as it was written.
        """
        self.table.verify(keys)
        step = Fetched(self.table.addresses(keys), self)
        far = np.flatnonzero(step.addresses == 0)
        if len(far):
            try:
                step.addresses[far] = self._fetch(keys[far], step)
            except BaseException:
                step.release()
                raise
        return step

    def prefetch(self, keys: Ints) -> None:
        """These clusters may be asked for by the next fetch; never waits, promises nothing."""
        keys = np.sort(keys[self.table.addresses(keys) == 0])
        with self._changed:
            keys = keys[self._cache.lookup(keys) == NONE]
            step = self._step
        chunks = [keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK)]
        jobs = (functools.partial(self._bring_ahead, chunk, step) for chunk in chunks)
        taken = self._prefetcher.offer(*jobs)
        if taken < len(chunks):
            with self._changed:
                self._statistics.refused += sum(map(len, chunks[taken:]))

    def statistics(self) -> BufferStatistics:
        """As of now."""
        with self._changed:
            return copy.deepcopy(replace(self._statistics, evicted=self._cache.evicted))

    def close(self) -> None:
        """See the class; raises what a thread could not read."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._quiet()
            self._cache, self._spare = BlockCache([], self._policy), []
            self._raise_failure()

    def _fetch(self, keys: Ints, step: Fetched) -> Ints:
        """Addresses of clusters that compute cannot read where they lie."""
        own = _Reading()
        try:
            with self._changed:
                if self._closed:
                    raise ValueError("fetch from a wave buffer that is closed")
                self._raise_failure()
                self._step += 1
                slots = self._cache.lookup(keys)
                there, absent = np.flatnonzero(slots != NONE), np.flatnonzero(slots == NONE)
                self._pin(step, slots[there])
                self._claim(own, keys[absent])
                self._pin(step, own.slots)
                slots[absent] = own.slots
                step._used = self._count(keys, slots, there, absent)
                places = self._cache.addresses(slots)
                homeless = np.flatnonzero(slots == NONE)
                if len(homeless):
                    places[homeless] = self._memory_for(keys[homeless], step)
            self._read(own, places[absent])
        finally:
            self._end(own)
        with self._changed:
            self._wait_for(keys[there], slots[there])
        return places

    def _bring_ahead(self, keys: Ints, step: int) -> None:
        """A thread's job."""
        own, failure = _Reading(), None
        try:
            with self._changed:
                statistics = self._statistics
                if self._closed or step != self._step:
                    statistics.stale += len(keys)
                    return
                self._claim(own, keys[self._cache.lookup(keys) == NONE])
                homed = own.slots != NONE
                statistics.refused += len(own.keys) - int(homed.sum())
                own.keys, own.slots = own.keys[homed], own.slots[homed]
                self._ahead[own.slots] = True
                statistics.predicted += len(own.keys)
                statistics.bytes_ahead += int(self.table.lengths(own.keys).sum())
                places = self._cache.addresses(own.slots)
            self._read(own, places)
        except BaseException as error:
            failure = error
        finally:
            self._end(own, failure)

    def _claim(self, own: _Reading, keys: Ints) -> None:
        """Slots for clusters that have none, as far as there are any; a read is under way."""
        if len(keys):
            self._catch_up()
        self._loading += 1
        own.begun = True
        assert len(np.unique(keys)) == len(keys), "a cluster was asked for twice"
        own.keys, own.slots = keys, self._cache.claim(keys, self.table.lengths(keys))

    def _read(self, own: _Reading, places: Ints) -> None:
        for done in self.table.read(own.keys, places):
            own.done = done

    def _end(self, own: _Reading, failure: BaseException | None = None) -> None:
        """Makes slots that were filled READY and the others free; keeps a thread's failure."""
        with self._changed:
            full, lost = own.slots[: own.done], own.slots[own.done :]
            self._cache.publish(full[full != NONE])
            self._cache.abandon(lost[lost != NONE])
            self._loading -= own.begun
            own.begun = False
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _pin(self, step: Fetched, slots: Slots) -> None:
        slots = slots[slots != NONE]
        self._cache.pin(slots)
        step._pinned = np.concatenate((step._pinned, slots))

    def _count(self, keys: Ints, slots: Slots, there: Ints, absent: Ints) -> Slots:
        """Counts a fetch; returns the slots whose use counts for the policy.

        The first use of what was read ahead does not: else what is read ahead would look as if it
        had been used before.
        """
        found, statistics = slots[there], self._statistics
        heads, ready = self.table.heads(keys), self._cache.ready(found)
        for counts, which in (
            (statistics.hits, there[ready]),
            (statistics.late, there[~ready]),
            (statistics.misses, absent),
        ):
            counts += np.bincount(heads[which], minlength=self.table.kv_heads)
        ahead = self._ahead[found]
        self._ahead[slots[slots != NONE]] = False
        statistics.foreseen += int(ahead.sum())
        statistics.homeless += int((slots == NONE).sum())
        statistics.bytes_fetched += int(self.table.lengths(keys[absent]).sum())
        return found[~ahead]

    def _memory_for(self, keys: Ints, step: Fetched) -> Ints:
        """Addresses for clusters that have no slot, in memory of the step's own."""
        room = -(-self.table.lengths(keys) // LINE) * LINE
        ends, spare = np.cumsum(room), self._spare.pop() if self._spare else None
        if spare is None or spare.numel() < ends[-1]:
            spare = torch.empty(int(ends[-1]), dtype=torch.uint8)
        step._memory = spare
        places: Ints = ends - room + spare.data_ptr()
        return places

    def _wait_for(self, keys: Ints, slots: Slots) -> None:
        """Until others have read these; raises what kept them from it."""
        while True:
            # First: what could not be read is lost, and its slot may be READY with another cluster.
            if (self._cache.lookup(keys) != slots).any():
                self._raise_failure()
                raise StoreError("a cluster that was being read could not be; ask again")
            if self._cache.ready(slots).all():
                return
            self._changed.wait()

    def _release(self, step: Fetched) -> None:
        with self._changed:
            if self._closed:
                return
            self._released.append((step._pinned, step._used))
            if step._memory is not None and len(self._spare) < SPARE:
                self._spare.append(step._memory)
        if not self._prefetcher.offer(self._settle):
            self._settle()

    def _settle(self) -> None:
        """What a step leaves behind, off its way."""
        with self._changed:
            self._catch_up()
            self._cache.settle()

    def _catch_up(self) -> None:
        for pinned, used in self._released:
            self._cache.touch(used)
            self._cache.unpin(pinned)
        self._released.clear()

    def _quiet(self) -> None:
        """Voids predictions, waits for reads under way."""
        self._step += 1
        while self._loading:
            self._changed.wait()
        self._catch_up()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
