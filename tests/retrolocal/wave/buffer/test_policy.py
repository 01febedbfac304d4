"""Replacement against models that a textbook would write, slot by slot."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrolocal.wave.buffer.policy import Lru, PolicyName, Sieve, make_policy

SLOTS = 7


class Model(Protocol):
    def __init__(self) -> None: ...
    @property
    def held(self) -> list[int]: ...
    def admit(self, slot: int) -> None: ...
    def touch(self, slot: int) -> None: ...
    def evict(self, pinned: set[int]) -> int | None: ...
    def discard(self, slot: int) -> None: ...


class LruModel:
    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    @property
    def held(self) -> list[int]:
        return list(self._order)

    def admit(self, slot: int) -> None:
        self._order[slot] = None

    def touch(self, slot: int) -> None:
        self._order.move_to_end(slot)

    def evict(self, pinned: set[int]) -> int | None:
        victim = next((slot for slot in self._order if slot not in pinned), None)
        if victim is not None:
            del self._order[victim]
        return victim

    def discard(self, slot: int) -> None:
        del self._order[slot]


class SieveModel:
    """A list from old to new, a hand that is an element of it or None."""

    def __init__(self) -> None:
        self._order: list[int] = []
        self._used: set[int] = set()
        self._hand: int | None = None

    @property
    def held(self) -> list[int]:
        return list(self._order)

    def admit(self, slot: int) -> None:
        self._order.append(slot)

    def touch(self, slot: int) -> None:
        self._used.add(slot)

    def evict(self, pinned: set[int]) -> int | None:
        if set(self._order) <= pinned:
            return None
        at = 0 if self._hand is None else self._order.index(self._hand)
        while self._order[at] in pinned or self._order[at] in self._used:
            if self._order[at] not in pinned:
                self._used.discard(self._order[at])
            at = (at + 1) % len(self._order)
        victim = self._order[at]
        self._hand = self._order[at + 1] if at + 1 < len(self._order) else None
        del self._order[at]
        return victim

    def discard(self, slot: int) -> None:
        at = self._order.index(slot)
        if self._hand == slot:
            self._hand = self._order[at + 1] if at + 1 < len(self._order) else None
        del self._order[at]
        self._used.discard(slot)


slot_sets = st.lists(st.integers(0, SLOTS - 1), unique=True, max_size=SLOTS)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["admit", "touch", "discard"]), slot_sets),
        st.tuples(st.just("evict"), slot_sets, st.integers(0, SLOTS + 1)),
    ),
    max_size=60,
)


@pytest.mark.parametrize(("kind", "model"), [(Lru, LruModel), (Sieve, SieveModel)], ids=str)
@settings(deadline=None, max_examples=400)
@given(steps=steps)
def test_batches_do_what_single_slots_would(
    kind: type[Lru] | type[Sieve], model: type[Model], steps: list[tuple[object, ...]]
) -> None:
    policy, textbook = kind(SLOTS), model()
    for step in steps:
        name, slots = step[0], step[1]
        assert isinstance(slots, list)
        if name == "evict":
            count = step[2]
            assert isinstance(count, int)
            pinned = np.isin(np.arange(SLOTS), slots)
            expected = [textbook.evict(set(slots)) for _ in range(count)]
            victims = policy.evict(count, pinned).tolist()
            assert victims == [slot for slot in expected if slot is not None]
            continue
        fitting = [slot for slot in slots if (slot in textbook.held) == (name != "admit")]
        getattr(policy, str(name))(np.array(fitting, np.int64))
        for slot in fitting:
            getattr(textbook, str(name))(slot)
    everything = policy.evict(SLOTS, np.zeros(SLOTS, np.bool_)).tolist()
    assert sorted(everything) == sorted(textbook.held)


@pytest.mark.parametrize(("name", "least", "most"), [("lru", 40, 40), ("sieve", 70, 78)])
def test_a_scan_does_not_push_out_what_is_needed_often(
    name: PolicyName, least: int, most: int
) -> None:
    """Two keys, asked for twice in a row after ten others that never come back, in eight slots."""
    policy, slot_of, hits = make_policy(name, 8), dict[int, int](), 0
    turns = ((0, 1, 0, 1, *range(10 * turn + 2, 10 * turn + 12)) for turn in range(20))
    for key in itertools.chain.from_iterable(turns):
        if key in slot_of:
            policy.touch(np.array([slot_of[key]]))
            hits += 1
            continue
        slot = len(slot_of)
        if slot == 8:
            [slot] = policy.evict(1, np.zeros(8, np.bool_)).tolist()
            slot_of = {k: other for k, other in slot_of.items() if other != slot}
        slot_of[key] = slot
        policy.admit(np.array([slot]))
    assert least <= hits <= most
