"""Which slots are given up when others are needed: integers only, no bytes, no tensors, no threads.

A policy knows slots 0 ... n - 1 by number, not what is in them. Slots come and go in batches, in
order: the outcome is that of the same slots one by one. Two policies:

`Lru` gives up the slot whose last use is longest ago. `Sieve` (Zhang et al., NSDI 2024) keeps slots
in the order they were filled; a hand moves from old to new, spares each slot that was used since
the hand last passed it, once, and gives up the first that was not. A use only sets a mark, and what
was needed once never pushes out what is needed often.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
"""Numbers of slots, in order."""
Flags = NDArray[np.bool_]
PolicyName = Literal["lru", "sieve"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
DEFAULT: PolicyName = "sieve"


class Policy(Protocol):
    """Invariant: a slot is held from `admit` until `evict` returns it or `discard` names it."""

    def __init__(self, slots: int) -> None: ...

    def admit(self, slots: Slots) -> None:
        """These slots, none of them held, were filled."""

    def touch(self, slots: Slots) -> None:
        """These slots, all of them held, were used."""

    def evict(self, count: int, pinned: Flags) -> Slots:
        """Gives up `count` held slots that are not pinned [slots], fewer if there are no more."""

    def discard(self, slots: Slots) -> None:
        """What these slots, all of them held, contain is worth nothing any more."""


class Lru:
    """See the module and `Policy`."""

    def __init__(self, slots: int) -> None:
        self._used = np.full(slots, -1, np.int64)
        """When each slot was last used; -1: not held."""
        self._clock = 0

    def admit(self, slots: Slots) -> None:
        self.touch(slots)

    def touch(self, slots: Slots) -> None:
        self._used[slots] = np.arange(self._clock, self._clock + len(slots))
        self._clock += len(slots)

    def evict(self, count: int, pinned: Flags) -> Slots:
        free = np.flatnonzero((self._used >= 0) & ~pinned)
        if count < len(free):
            free = free[np.argpartition(self._used[free], count)[:count]]
        victims = free[np.argsort(self._used[free])]
        self._used[victims] = -1
        return victims

    def discard(self, slots: Slots) -> None:
        self._used[slots] = -1


class Sieve:
    """See the module and `Policy`. The order is an array with gaps, closed when it is full."""

    def __init__(self, slots: int) -> None:
        self._used = np.zeros(slots, np.bool_)
        self._place = np.full(slots, -1, np.int64)
        """Of each slot in the order; -1: not held."""
        self._order = np.full(2 * slots, -1, np.int64)
        """Slots from old to new; -1: a gap."""
        self._length = 0
        self._hand = 0

    def admit(self, slots: Slots) -> None:
        if self._length + len(slots) > len(self._order):
            self._close_gaps()
        places = np.arange(self._length, self._length + len(slots))
        self._order[places], self._place[slots] = slots, places
        self._used[slots] = False
        self._length += len(slots)

    def touch(self, slots: Slots) -> None:
        self._used[slots] = True

    def evict(self, count: int, pinned: Flags) -> Slots:
        # From the hand on, all around, and once more for what the hand has spared on its way.
        victims = self._pass(self._hand, count, pinned)
        for _ in range(2):
            if len(victims) < count:
                more = self._pass(0, count - len(victims), pinned)
                victims = np.concatenate((victims, more))
        return victims

    def discard(self, slots: Slots) -> None:
        self._order[self._place[slots]] = -1
        self._place[slots] = -1
        self._move(self._hand)

    def _pass(self, start: int, count: int, pinned: Flags) -> Slots:
        """The hand goes from `start` until `count` slots are given up, at most to the newest."""
        window = self._order[start : self._length]
        open_ = np.flatnonzero((window >= 0) & ~pinned[window])
        unused = open_[~self._used[window[open_]]][:count]
        end = int(unused[-1]) + 1 if len(unused) else 0
        passed = open_[open_ < end] if len(unused) == count else open_
        self._used[window[passed]] = False
        victims = window[unused]
        self._place[victims], window[unused] = -1, -1
        if end:
            self._move(start + end)
        return victims

    def _move(self, hand: int) -> None:
        """To a place in the order; beyond the newest slot comes the oldest."""
        beyond = not (self._order[hand : self._length] >= 0).any()
        self._hand = 0 if beyond else hand

    def _close_gaps(self) -> None:
        held = np.flatnonzero(self._order[: self._length] >= 0)
        self._hand = int(np.searchsorted(held, self._hand))
        slots = self._order[held]
        self._length = len(slots)
        self._order[: len(slots)], self._order[len(slots) :] = slots, -1
        self._place[slots] = np.arange(len(slots))


def make_policy(name: PolicyName, slots: int) -> Policy:
    kinds: dict[PolicyName, type[Policy]] = {"lru": Lru, "sieve": Sieve}
    return kinds[name](slots)
