"""Segments in arenas: they stay where they were put, apart, and can be forgotten."""

from __future__ import annotations

from itertools import pairwise

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


def blocks(number: int, size: int) -> Tensor:
    return torch.full((2, size), number % 251, dtype=torch.uint8)


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
            held.append(blocks(number, step))
            store.append(held[-1])
        else:
            del held[round(step * len(held)) :]
            store.keep(len(held))
        assert store.bytes == sum(one.numel() for one in held)
        places = []
        for n, one in enumerate(held):
            found = store.segment(n)
            assert torch.equal(found, one)
            assert found.data_ptr() % ALIGNED == 0
            places.append((found.data_ptr(), found.data_ptr() + found.numel()))
        places.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(places))


def test_a_segment_does_not_move_when_others_come() -> None:
    store = PinnedStore(pinned=False)
    store.append(blocks(1, 100))
    address = store.segment(0).data_ptr()
    for number in range(20):
        store.append(blocks(number, 90))
    assert store.segment(0).data_ptr() == address
