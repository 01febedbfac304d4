"""A model whose steps are captured says what the model itself says, and is seldom captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from retrolocal.cache import RingCache
from retrolocal.config import WaveConfig
from retrolocal.device_graph import CapturedCache, GraphedModel
from retrolocal.device_ring import DeviceRing
from retrolocal.kernels import device_table, wave_attention_triton
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.device_step import DeviceStep

pytestmark = [
    pytest.mark.usefixtures("triton_device"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
CONFIG = WaveConfig(
    sink_tokens=2,
    window_tokens=4,
    segment_tokens=32,
    growth_tokens=8,
    cluster_tokens=8,
    group_clusters=2,
    iterations=1,
    index_type="f32",
    store_type="bf16",
    budget=0.5,
)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps may be captured, and the kernels take few programs."""
    monkeypatch.setattr(
        DeviceStep, "possible", property(lambda self: len(self._index.segments) > 0)
    )
    monkeypatch.setattr(DeviceRing, "possible", True)
    monkeypatch.setattr(wave_attention_triton, "PARTS", wave_attention_triton.Parts(1, 1, 1))
    monkeypatch.setattr(device_table, "LEAST", (4, 64, 64, 64))
    wave_attention_triton.forget()


class _Recording:
    """What a CUDA graph does: one run to warm up, one that is kept, and repeated on demand.

    Repeated, the run has to be nothing but launches: the caches are told that it is captured.
    """

    def __init__(self, caches: Sequence[WaveCache | RingCache]) -> None:
        self._caches = caches

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        run()
        run()

        def replay() -> None:
            for cache in self._caches:
                if isinstance(cache, RingCache):
                    cache._captured = cache._ring
                else:
                    cache._captured = cache._device_step
            try:
                run()
            finally:
                for cache in self._caches:
                    cache._captured = None

        return replay


class Layer:
    """A model of one layer: a query, a key and a value per token id, one KV head."""

    capturable = True

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randn(4, 256, 16, generator=generator)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Any,
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        q, (k, v) = self._rows[:2, token_ids], self._rows[2:, None, token_ids]
        out: Tensor = caches[0].attend(q[:, len(token_ids) - wanted :], k, v, positions)
        return out.transpose(0, 1).flatten(1) + positions[-1]


def test_replays_say_what_the_model_says() -> None:
    model, prompt = Layer(), torch.arange(48) * 37 % 250
    eager, captured = ([WaveCache(CONFIG)] for _ in range(2))
    for caches in (eager, captured):
        model(prompt, torch.arange(48), caches, 1)
    graphed = GraphedModel(model, capture=_Recording(captured))
    assert all(isinstance(cache, CapturedCache) for cache in captured)
    for step in range(6):
        if step == 3:
            # A segment more changes tables only.
            for cache in (*eager, *captured):
                cache.settle()
        ids, positions = torch.tensor([step * 11 % 250]), torch.tensor([48 + step])
        expected = model(ids, positions, eager, 1)
        found = graphed(ids, positions, captured, 1)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    said, wanted = captured[0].statistics(), eager[0].statistics()
    assert (said.steps, said.tokens, said.clusters) == (6, 54, wanted.clusters)
    assert said.retrieved_tokens == wanted.retrieved_tokens
    assert said.mass_exact == pytest.approx(wanted.mass_exact, abs=2e-3)
    shares, expected_shares = captured[0].read_from(), eager[0].read_from()
    assert shares is not None
    assert expected_shares is not None
    torch.testing.assert_close(shares, expected_shares, rtol=2e-3, atol=1e-4)
    assert graphed.captured == 1


class Layers:
    """One sliding-window layer, then one with the whole context, as in a decoder."""

    def __init__(self) -> None:
        self._layer = Layer()

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Any,
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        near = self._layer(token_ids, positions, caches[:1], wanted)
        return near + self._layer(token_ids, positions, caches[1:], wanted)


@pytest.mark.parametrize("window", [1, 7, 32, 60])
def test_a_model_with_sliding_windows_is_one_graph(window: int) -> None:
    """Through prompts between answers, going back, and what is saved of the window."""
    model, prompt = Layers(), torch.arange(48) * 37 % 250
    eager, captured = ([RingCache(window), WaveCache(CONFIG)] for _ in range(2))
    graphed, at = GraphedModel(model, capture=_Recording(captured)), 0

    def read(ids: Tensor) -> None:
        nonlocal at
        positions = torch.arange(at, at + len(ids))
        expected = model(ids, positions, eager, 1)
        found = graphed(ids, positions, captured, 1)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        at += len(ids)

    read(prompt)
    marks = [[cache.snapshot() for cache in caches] for caches in (eager, captured)]
    for _ in range(2):
        for step in range(4):
            read(torch.tensor([step * 11 % 250]))
        read(prompt[:3])
        read(prompt[5:6])
        wanted, found = eager[0].saved_rest(), captured[0].saved_rest()
        assert all(torch.equal(found[name], wanted[name]) for name in ("k", "v"))
        assert captured[0].statistics() == eager[0].statistics()
        for caches, mark in zip((eager, captured), marks, strict=True):
            for cache, snapshot in zip(caches, mark, strict=True):
                cache.restore(snapshot)
        at = 48
    assert graphed.captured <= 2


def test_a_model_that_reads_back_is_not_captured() -> None:
    model, prompt = Layer(), torch.arange(48)
    model.capturable = False
    caches = [WaveCache(CONFIG)]
    model(prompt, torch.arange(48), caches, 1)

    def never(run: Callable[[], object]) -> Callable[[], object]:
        raise AssertionError("nothing is to be captured")

    one = torch.zeros(1, dtype=torch.int64)
    GraphedModel(model, capture=never)(one, one + 48, caches, 1)
    assert caches[0].tokens == 49


def test_other_caches_and_prompts_go_to_the_model_itself() -> None:
    calls: list[int] = []

    def model(ids: Tensor, positions: Tensor, caches: Any, wanted: int, on: Any = None) -> Tensor:
        calls.append(len(ids))
        return torch.zeros(wanted, 3)

    def never(run: Callable[[], object]) -> Callable[[], object]:
        raise AssertionError("nothing is to be captured")

    graphed = GraphedModel(model, capture=never)
    one = torch.zeros(1, dtype=torch.int64)
    graphed(one, one, [object()], 1)
    graphed(one, one, [WaveCache(CONFIG)], 1)
    graphed(torch.zeros(4, dtype=torch.int64), torch.arange(4), [], 1)
    assert calls == [1, 1, 4]
