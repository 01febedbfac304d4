"""Slots: as many as fit, none with two clusters, none given up that is in use."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retrolocal.wave.buffer.policy import POLICIES
from retrolocal.wave.buffer.slots import (
    LINE,
    NONE,
    RESERVE,
    BlockCache,
    SlotClass,
    slot_classes,
)

TOKEN = 256


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=400),
    st.floats(0.0, 3.0),
)
def test_classes_fill_the_capacity_and_hold_every_length(sizes: list[int], share: float) -> None:
    lengths = np.array(sizes, np.int64) * TOKEN
    capacity = int(share * int(lengths.sum()))
    classes = slot_classes(lengths, capacity, TOKEN)
    assert sum(one.length * one.slots for one in classes) <= capacity
    assert [one.length for one in classes] == sorted({one.length for one in classes})
    assert sum(one.slots for one in classes) <= sum(size > 0 for size in sizes)
    for one in classes:
        assert one.length % LINE == 0
        assert one.slots >= 1
    if capacity >= int(lengths.sum()) + 8 * TOKEN * len(sizes) and lengths.any():
        assert classes[-1].length >= lengths.max()
        assert sum(one.slots for one in classes) == sum(size > 0 for size in sizes)


def test_lone_tokens_have_short_slots() -> None:
    lengths = np.array([1] * 100 + [5] * 100 + [9] * 100 + [16] * 100 + [60], np.int64) * TOKEN
    classes = slot_classes(lengths, int(lengths.sum()) // 2, TOKEN)
    assert [one.length // TOKEN for one in classes] == [1, 8, 16]
    everything = slot_classes(lengths, 2 * int(lengths.sum()), TOKEN)
    assert sum(one.slots for one in everything) == 401


def test_no_room_is_no_cache() -> None:
    cache = BlockCache(slot_classes(np.array([TOKEN], np.int64), 0, TOKEN))
    cache.grow(1)
    assert (cache.slots, cache.bytes) == (0, 0)
    assert cache.claim(np.array([0]), np.array([TOKEN])).tolist() == [NONE]
    assert cache.lookup(np.zeros(1, np.int64)).tolist() == [NONE]


class Cache(RuleBasedStateMachine):
    """Any order of claims, publications, failures, pins, uses and forgetting."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = [SlotClass(TOKEN, 4), SlotClass(8 * TOKEN, 40)]
        self.lengths = [TOKEN, TOKEN, 3 * TOKEN, 8 * TOKEN, 9 * TOKEN] * 20
        self.keys = len(self.lengths)
        self.loading: dict[int, int] = {}
        self.pinned: list[int] = []
        self.held: dict[int, int] = {}
        """What was READY; a slot may have been given up since."""

    @rule(policy=st.sampled_from(POLICIES))
    def begin(self, policy: str) -> None:
        if not hasattr(self, "cache"):
            self.cache = BlockCache(self.classes, policy)  # type: ignore[arg-type]
            self.cache.grow(self.keys)

    def slot(self, key: int) -> int:
        return int(self.cache.lookup(np.array([key], np.int64))[0])

    @precondition(lambda self: hasattr(self, "cache"))
    @rule(key=st.integers(0, 99))
    def claim(self, key: int) -> None:
        if self.slot(key) != NONE:
            return
        [slot] = self.cache.claim(np.array([key]), np.array([self.lengths[key]])).tolist()
        if slot == NONE:
            wanted = 0 if self.lengths[key] <= TOKEN else 1
            if self.lengths[key] <= 8 * TOKEN:
                first, count = ((0, 4), (4, 40))[wanted]
                busy = {*self.loading.values(), *self.pinned}
                assert busy >= set(range(first, first + count))
            return
        assert slot not in self.loading.values()
        assert slot not in self.pinned
        assert (slot < 4) == (self.lengths[key] <= TOKEN)
        self.loading[key] = slot

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), well=st.booleans())
    def end(self, data: st.DataObject, well: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.loading)))
        slot = self.loading.pop(key)
        if well:
            self.cache.publish(np.array([slot], np.int64))
            self.held[key] = slot
        else:
            self.cache.abandon(np.array([slot], np.int64))
            assert self.slot(key) == NONE

    @precondition(lambda self: hasattr(self, "cache"))
    @rule(key=st.integers(0, 99))
    def pin(self, key: int) -> None:
        slot = self.slot(key)
        if slot != NONE and key in self.held:
            self.cache.pin(np.array([slot], np.int64))
            self.cache.touch(np.array([slot], np.int64))
            self.pinned.append(slot)

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        self.cache.unpin(np.array([self.pinned.pop()], np.int64))

    @precondition(lambda self: hasattr(self, "cache"))
    @rule()
    def settle(self) -> None:
        self.cache.settle()
        if not self.pinned and not self.loading:
            held = sum(self.slot(key) != NONE and self.slot(key) >= 4 for key in range(self.keys))
            assert held <= 40 - 40 // RESERVE

    @precondition(lambda self: hasattr(self, "cache") and not self.loading and not self.pinned)
    @rule(first=st.integers(0, 100))
    def forget(self, first: int) -> None:
        self.cache.forget(first)
        assert all(self.slot(key) == NONE for key in range(first, self.keys))

    @invariant()
    def no_slot_has_two_clusters(self) -> None:
        if not hasattr(self, "cache"):
            return
        slots = self.cache.lookup(np.arange(self.keys)).tolist()
        taken = [slot for slot in slots if slot != NONE]
        assert len(taken) == len(set(taken))
        for key, slot in self.loading.items():
            assert slots[key] == slot
            assert not self.cache.ready(np.array([slot], np.int64))[0]
        for key, slot in list(self.held.items()):
            if slots[key] != slot:
                assert slot not in self.pinned
                del self.held[key]
        addresses = sorted(self.cache.addresses(np.arange(44)).tolist())
        steps = {b - a for a, b in pairwise(addresses)}
        assert steps == {TOKEN, 8 * TOKEN}


Cache.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestCache = Cache.TestCase
