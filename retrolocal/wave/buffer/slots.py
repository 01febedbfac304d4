"""The block cache: which clusters lie in which slots of the fast tier. Bookkeeping and one arena.

A cluster lies in one slot, contiguous, as in the store: its place is one address, and a codec may
lay out a cluster as it likes. Clusters differ in length, so there are classes of slots, 1, 8, 16,
24 ... tokens long, each with a policy of its own: lone tokens, a sixth of all clusters, do not take
eight tokens' room, and the others waste four tokens on average. RetroInfer cuts clusters into pages
of 8 tokens that lie anywhere: that wastes as little, but every kernel then follows a table of
pages. How many slots a class gets follows from the lengths of the clusters that there are.

A slot is FREE, LOADING (its cluster is known, its bytes are not all there) or READY. Only READY
slots that nobody has pinned are given up. A few slots of every class are kept FREE by `settle`, so
that a miss need not wait until the policy has decided. Nothing here locks: `WaveBuffer` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .policy import DEFAULT, Flags, PolicyName, Slots, make_policy

UNIT_TOKENS = 8
"""Lengths of slots are multiples of this many tokens; and there are slots for one token."""
LINE = 64
"""Slots begin at multiples of this many bytes."""
LEAST_SLOTS = 8
"""A class with fewer is not worth a policy: its clusters go to longer slots, if there are any."""
RESERVE = 16
"""One of so many slots of a class is kept free."""
NONE = -1

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotClass:
    length: int
    """Bytes of each slot."""
    slots: int


def slot_classes(lengths: Ints, capacity: int, token_bytes: int) -> list[SlotClass]:
    """Classes, shortest first, that hold the same share of all clusters in `capacity` bytes.

    `lengths` are the bytes of the clusters that there are; those of 0 are left out. No more slots
    than clusters. Where the longest are so few that their share is no slot, they have none.
    """
    unit = UNIT_TOKENS * token_bytes
    held = lengths[lengths > 0]
    rounded = np.where(held <= token_bytes, token_bytes, -(-held // unit) * unit)
    rounded = -(-rounded // LINE) * LINE
    sizes, counts = (array.tolist() for array in np.unique(rounded, return_counts=True))
    share = min(1.0, capacity / max(1, int(rounded.sum())))
    while True:
        classes = _shared_out(sizes, counts, share)
        used = sum(one.length * one.slots for one in classes)
        if used <= capacity:
            return classes
        share *= min(0.99, capacity / used)


def _shared_out(sizes: list[int], counts: list[int], share: float) -> list[SlotClass]:
    classes: list[SlotClass] = []
    slots, clusters = 0.0, 0
    for size, count in zip(sizes, counts, strict=True):
        slots, clusters = slots + count * share, clusters + count
        if round(slots) >= min(LEAST_SLOTS, clusters):
            classes.append(SlotClass(size, round(slots)))
            slots, clusters = 0.0, 0
    if round(slots):
        classes.append(SlotClass(sizes[-1], round(slots)))
    return classes


class BlockCache:
    """See the module. Keys are numbers 0 ... `keys` - 1 of clusters; slots are numbered through."""

    def __init__(
        self,
        classes: list[SlotClass],
        policy: PolicyName = DEFAULT,
        device: torch.device | None = None,
    ) -> None:
        """The arena is on `device`, in the memory of the machine when none is given."""
        counts = np.array([one.slots for one in classes], np.int64)
        self._lengths = np.array([one.length for one in classes], np.int64)
        self._first = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
        """First slot of each class, and the number of all slots."""
        ends = np.cumsum(np.repeat(self._lengths, counts))
        self._starts = np.append(ends - np.repeat(self._lengths, counts), 0)
        """Of each slot in the arena; the last is that of `NONE`."""
        self._policies = [make_policy(policy, count) for count in counts.tolist()]
        self._free = [
            list(range(first + count - 1, first - 1, -1))
            for first, count in zip(self._first.tolist(), counts.tolist(), strict=False)
        ]
        self._slot_of = np.full(0, NONE, np.int64)
        self._key_of = np.full(len(ends), NONE, np.int64)
        self._ready = np.zeros(len(ends), np.bool_)
        self._pins = np.zeros(len(ends), np.int64)
        # Written once now: the first write to a page of memory takes longer than the copy.
        size = int(self._lengths @ counts)
        self._arena = torch.empty(size, dtype=torch.uint8, device=device).zero_()
        self.evicted = 0

    @property
    def slots(self) -> int:
        return len(self._key_of)

    @property
    def bytes(self) -> int:
        return self._arena.numel()

    @property
    def pinned(self) -> bool:
        """Whether any slot is."""
        return bool(self._pins.any())

    def grow(self, keys: int) -> None:
        """From now on there are so many keys; only more than before."""
        if keys > len(self._slot_of):
            more = max(keys, 2 * len(self._slot_of)) - len(self._slot_of)
            self._slot_of = np.concatenate((self._slot_of, np.full(more, NONE, np.int64)))

    def lookup(self, keys: Ints) -> Slots:
        """The slot of each key, `NONE` where it has none."""
        return self._slot_of[keys]

    def ready(self, slots: Slots) -> Flags:
        """Which of these slots hold all bytes of their cluster."""
        return self._ready[slots]

    def addresses(self, slots: Slots) -> Ints:
        """Where each slot begins; of no meaning for `NONE`."""
        return self._starts[slots] + self._arena.data_ptr()

    def claim(self, keys: Ints, lengths: Ints) -> Slots:
        """Slots, from now on LOADING, for clusters that have none; `NONE` where all are in use."""
        numbers = np.searchsorted(self._lengths, lengths)
        wanted = np.bincount(numbers, minlength=len(self._free)).tolist()
        for number, free in enumerate(self._free):
            if wanted[number] > len(free):
                self._evict(number, wanted[number] - len(free))
        taken = [
            self._free[n].pop() if n < len(self._free) and self._free[n] else NONE
            for n in numbers.tolist()
        ]
        slots = np.array(taken, np.int64)
        homed = slots != NONE
        self._slot_of[keys[homed]], self._key_of[slots[homed]] = slots[homed], keys[homed]
        return slots

    def publish(self, slots: Slots) -> None:
        """These LOADING slots have all their bytes."""
        self._ready[slots] = True
        for number, inside in self._by_class(slots):
            self._policies[number].admit(inside)

    def abandon(self, slots: Slots) -> None:
        """These LOADING slots will not be filled; they are free at once."""
        for number, inside in self._by_class(slots):
            self._release(number, inside)

    def pin(self, slots: Slots) -> None:
        """Until unpinned as often, these slots, all different, keep what they hold or will hold."""
        self._pins[slots] += 1

    def unpin(self, slots: Slots) -> None:
        self._pins[slots] -= 1

    def touch(self, slots: Slots) -> None:
        """These slots were used; those that are not READY any more are left out."""
        for number, inside in self._by_class(slots[self._ready[slots]]):
            self._policies[number].touch(inside)

    def settle(self) -> None:
        """Gives up slots until every class has its reserve."""
        for number, free in enumerate(self._free):
            reserve = (self._first[number + 1] - self._first[number]) // RESERVE
            if len(free) < reserve:
                self._evict(number, int(reserve) - len(free))

    def forget(self, first: int) -> None:
        """Keys from `first` on will mean something else. None of them is LOADING or pinned."""
        slots = self._slot_of[first:]
        slots = slots[slots != NONE]
        assert not self._pins[slots].any(), "a step is still reading what is to be forgotten"
        assert self._ready[slots].all(), "what is to be forgotten is still being read"
        for number, inside in self._by_class(slots):
            self._policies[number].discard(inside)
            self._release(number, inside)

    def _evict(self, number: int, count: int) -> None:
        first, stop = self._first[number : number + 2]
        victims = self._policies[number].evict(count, self._pins[first:stop] > 0)
        self.evicted += len(victims)
        self._release(number, victims)

    def _release(self, number: int, inside: Slots) -> None:
        """Slots of one class, numbered within it, hold nothing from now on."""
        slots = inside + self._first[number]
        self._slot_of[self._key_of[slots]] = NONE
        self._key_of[slots] = NONE
        self._ready[slots] = False
        self._free[number].extend(slots.tolist())

    def _by_class(self, slots: Slots) -> list[tuple[int, Slots]]:
        """The slots of each class that has some, numbered within it, in the order given."""
        if not len(slots):
            return []
        numbers = np.searchsorted(self._first, slots, side="right") - 1
        present = np.unique(numbers).tolist()
        return [(n, slots[numbers == n] - self._first[n]) for n in present]
