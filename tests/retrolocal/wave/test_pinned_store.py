"""Segments in arenas: they stay where they were put, apart, and can be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.wave import store as module
from retrolocal.wave.store import ALIGNED, PinnedStore


@pytest.fixture(autouse=True)
def _small_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARENA_BYTES", 256)


@dataclass
class Held:
    """What a store looks at of a segment."""

    blocks: Tensor


def held_of(number: int, size: int) -> Any:
    return Held(torch.full((2, size), number % 251, dtype=torch.uint8))


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.integers(1, 400), st.floats(0, 1).map(lambda share: share)), max_size=25
    )
)
def test_what_is_held_is_what_was_put_in(steps: list[int | float]) -> None:
    """An integer appends a segment of so many bytes a head; a share keeps so much of them."""
    store, held = PinnedStore(pinned=False), list[Tensor]()
    for number, step in enumerate(steps):
        if isinstance(step, int):
            one = held_of(number, step)
            held.append(one.blocks)
            store.append(one)
        else:
            del held[round(step * len(held)) :]
            store.keep(len(held))
        assert store.bytes == sum(one.numel() for one in held)
        places = []
        for n, one in enumerate(held):
            found = store.whole(n).blocks
            assert torch.equal(found, one)
            assert found.data_ptr() % ALIGNED == 0
            places.append((found.data_ptr(), found.data_ptr() + found.numel()))
        places.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(places))


def test_a_segment_does_not_move_when_others_come() -> None:
    store = PinnedStore(pinned=False)
    store.append(held_of(1, 100))
    address = store.whole(0).blocks.data_ptr()
    for number in range(20):
        store.append(held_of(number, 90))
    assert store.whole(0).blocks.data_ptr() == address
