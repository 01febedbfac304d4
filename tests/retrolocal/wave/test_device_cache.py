"""The block cache of a GPU, its rounds played on the CPU, where copies are made at once."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrolocal.config import WaveConfig
from retrolocal.kernels.segment import SegmentTable
from retrolocal.wave import device_cache as module
from retrolocal.wave.clustering import cluster_segment
from retrolocal.wave.device_cache import DeviceBlockCache
from retrolocal.wave.store import PinnedStore

CONFIG = WaveConfig(cluster_tokens=8, group_clusters=4, iterations=1)
HEADS, DIM = 2, 16
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 1)
    monkeypatch.setattr(module, "LEAST_BYTES", 1)
    monkeypatch.setattr(module, "LISTED", 40)


class Layer:
    """A table of segments, their store, and a block cache for a share of them."""

    def __init__(self, budget: int) -> None:
        self.segments, self.store = SegmentTable(), PinnedStore(pinned=False)
        self.cache = DeviceBlockCache(self.segments, budget, CPU)

    def append(self, tokens: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        k, v = torch.randn(2, HEADS, tokens, DIM, generator=generator)
        segment = cluster_segment(k, v, CONFIG)[0]
        placed = self.store.append(segment)
        self.segments.append(placed)
        self.cache.append(placed)

    def keep(self, segments: int) -> None:
        self.cache.keep(segments)
        self.segments.keep(segments)
        self.store.keep(segments)

    def clusters(self) -> list[bytes]:
        """The bytes of every key, in the order of keys."""
        found = []
        width = self.segments[0].codec.token_bytes(DIM) if len(self.segments) else 0
        for segment in self.segments:
            for head in range(HEADS):
                for first, last in zip(
                    segment.starts[head].tolist(), segment.starts[head].tolist()[1:], strict=False
                ):
                    own = segment.blocks[head, first * width : last * width]
                    found.append(bytes(own.numpy()))
        return found

    def step(self, keys: list[int]) -> None:
        """A step that retrieves these keys: what a kernel does with the slot map."""
        self.cache.before_step()
        slots = self.segments.slots
        if slots is None:
            return
        blocks, heads = self.clusters(), self._heads()
        for head in range(HEADS):
            own = [k for k in keys if heads[k] == head and blocks[k]][: module.LISTED]
            asked = torch.tensor(own, dtype=torch.int64)
            places = slots.places[asked]
            for key, place in zip(own, places.tolist(), strict=True):
                if place:
                    assert ctypes.string_at(place, len(blocks[key])) == blocks[key]
            slots.asked[head, : len(own)] = torch.where(places != 0, -1 - asked, asked)
            slots.counts[head, 0] += len(own)
            slots.counts[head, 1] += int((places != 0).sum())
            slots.counts[head, 2] = len(own)
        self.cache.after_step()
        if self.cache._work is not None:
            self.cache._work.result()

    def _heads(self) -> list[int]:
        return [h for s in self.segments for h in range(HEADS) for _ in range(s.clusters)]


def test_what_is_asked_for_again_is_found() -> None:
    layer = Layer(budget=1 << 20)
    layer.append(200, 0)
    keys = list(range(0, len(layer.clusters()), 3))
    for _ in range(3):
        layer.step(keys)
    slots = layer.segments.slots
    assert slots is not None
    held = [k for k in keys if layer.clusters()[k]]
    assert layer.cache.admitted == len(held)
    asked, found, _ = slots.counts.sum(0).tolist()
    assert (asked, found) == (3 * len(held), 2 * len(held))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), budget=st.integers(300, 6000))
def test_a_slot_holds_the_bytes_of_its_cluster(data: st.DataObject, budget: int) -> None:
    """Whatever is asked, appended and forgotten; `Layer.step` checks every slot it reads."""
    layer = Layer(budget)
    layer.append(60, 0)
    for number in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["step", "step", "step", "append", "keep"]))
        if action == "append" and len(layer.segments) < 4:
            layer.append(data.draw(st.integers(1, 70)), number)
        elif action == "keep" and len(layer.segments) > 1:
            layer.keep(data.draw(st.integers(1, len(layer.segments))))
        else:
            count = len(layer.clusters())
            keys = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=30))
            layer.step(keys)
    slots = layer.segments.slots
    assert layer.cache.bytes <= budget
    if slots is not None:
        places = slots.places[slots.places != 0].numpy()
        assert len(np.unique(places)) == len(places)


def test_a_budget_that_holds_nothing_is_no_cache() -> None:
    layer = Layer(budget=0)
    layer.append(60, 0)
    layer.step([0])
    assert layer.segments.slots is None
    assert layer.cache.bytes == 0
