"""Segments that are clustered and fetched in other streams: the same bytes, in the right order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.config import WaveConfig
from retrolocal.wave import cache as module
from retrolocal.wave.beside import AHEAD, Beside
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.store import PinnedStore

CPU = torch.device("cpu")
CONFIG = WaveConfig(
    segment_tokens=64,
    growth_tokens=48,
    cluster_tokens=8,
    group_clusters=2,
    iterations=1,
    window_tokens=8,
    store_type="int8",
)


class Logged(Beside):
    """Says what happened: B work begun, E its end, M a mark, W who waited for it."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(CPU)
        self._log = log

    @contextmanager
    def work(self, *read: Tensor) -> Iterator[None]:
        self._log.append("B")
        yield
        self._log.append("E")

    def mark(self) -> None:
        self._log.append("M")

    def wait(self, mark: object, *made: Tensor) -> None:
        self._log.append("W")


def make(beside: Beside | None = None, ahead: Beside | None = None) -> WaveCache:
    return WaveCache(CONFIG, PinnedStore(pinned=False), beside=beside, ahead=ahead)


def saved(cache: WaveCache) -> list[dict[str, Tensor]]:
    return [*cache.saved_segments(), cache.saved_rest()]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_cache_that_clusters_beside_is_the_same_cache(data: st.DataObject) -> None:
    """Under any mixture of prompts, steps, going back, settling and looking."""
    both = make(), make(Beside(CPU), Beside(CPU))
    marks: list[tuple[object, ...]] = []
    for number in range(data.draw(st.integers(1, 9))):
        action = data.draw(st.sampled_from(["prompt", "prompt", "step", "mark", "back", "settle"]))
        if action == "mark":
            marks.append(tuple(cache.snapshot() for cache in both))
        elif action == "back" and marks:
            chosen = marks[data.draw(st.integers(0, len(marks) - 1))]
            del marks[marks.index(chosen) + 1 :]
            for cache, snapshot in zip(both, chosen, strict=True):
                cache.restore(snapshot)  # type: ignore[arg-type]
        elif action == "settle":
            for cache in both:
                cache.settle()
        elif action in ("prompt", "step"):
            count = 1 if action == "step" else data.draw(st.integers(2, 200))
            generator = torch.Generator().manual_seed(number)
            q, k, v = torch.randn(3, 2, count, 16, generator=generator)
            at = torch.arange(both[0].tokens, both[0].tokens + count)
            outs = [cache.attend(q, k, v, at) for cache in both]
            assert torch.equal(*outs)
    if both[0].tokens:
        for one, two in zip(*map(saved, both), strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one)
        assert both[0].statistics() == both[1].statistics()


def test_layers_are_taken_up_while_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer waits for its own segment; so many are on their way, and each is waited for."""
    log: list[str] = []
    beside = Logged(log)
    layers = [make(beside) for _ in range(5)]
    q, k, v = torch.randn(3, 2, 76, 16)
    attended = WaveCache.attend

    def attend(self: WaveCache, *given: Tensor) -> Tensor:
        log.append(str(layers.index(self)))
        return attended(self, *given)

    monkeypatch.setattr(WaveCache, "attend", attend)
    for layer in layers:
        layer.attend(q, k, v, torch.arange(76))
    assert "".join(log) == "0BEM1BEM2BEMW3BEMW4BEMW"
    assert [layer._coming is None for layer in layers] == [True] * 3 + [False] * AHEAD
    log.clear()
    layers[4].attend(q[:, :64], k[:, :64], v[:, :64], torch.arange(76, 140))
    assert "".join(log[:3]) == "4WB"


def test_the_next_segment_comes_while_one_is_attended_to() -> None:
    log: list[str] = []
    cache = make(ahead=Logged(log))
    q, k, v = torch.randn(3, 2, 300, 16)
    cache.attend(q[:, :0], k, v, torch.arange(300))
    assert len(cache._index.segments) == 4
    log.clear()
    cache.attend(*torch.randn(3, 2, 4, 16), torch.arange(300, 304))
    assert "".join(log) == "BEMBEMWBEMWBEMWW"


def test_a_context_that_is_gone_is_not_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Beside(CPU)
    calls: list[WaveCache] = []
    monkeypatch.setattr(module.WaveCache, "_take", lambda self, *given: calls.append(self))
    for _ in range(AHEAD + 2):
        make(beside).attend(*torch.randn(3, 2, 76, 16), torch.arange(76))
    assert calls == []
