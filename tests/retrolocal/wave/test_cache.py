"""The invariants of the wave cache as properties over lengths, chunks, shapes, dtypes, budgets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.cache import DenseCache
from retrolocal.config import WaveConfig
from retrolocal.fidelity import exact_attention
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.clustering import cluster_segment
from retrolocal.wave.lengths import Lengths
from retrolocal.wave.reader import stored_rows

Rows = tuple[Tensor, Tensor, Tensor]
SMALL = WaveConfig(
    segment_tokens=64,
    growth_tokens=20,
    window_tokens=8,
    cluster_tokens=8,
    iterations=4,
    store_type="bf16",
)
STORES = st.sampled_from(["bf16", "int8", "int4"])
RELAXED = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHUNKS = st.lists(st.integers(1, 3) | st.just(1) | st.integers(1, 150), min_size=1, max_size=25)


def run(
    cache: DenseCache | WaveCache, rows: Rows, chunks: list[int], start: int = 0
) -> list[Tensor]:
    out = []
    for count in chunks:
        q, k, v = (t[:, start : start + count] for t in rows)
        out.append(cache.attend(q, k, v, torch.arange(start, start + count)))
        start += count
    return out


def held(cache: WaveCache) -> Tensor:
    """Every key that the cache holds, [Hkv, tokens, D], in token order."""
    sinks = SMALL.sink_tokens
    segments = [cache._in_token_order(n)[0] for n in range(len(cache._index.segments))]
    steady = cache._steady.view()[0]
    return torch.cat((steady[:, :sinks], *segments, steady[:, sinks:]), dim=1)


@RELAXED
@given(
    chunks=CHUNKS,
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1)]),
    dim=st.sampled_from([8, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_full_budget_equals_dense(
    structured: Callable[..., Rows],
    chunks: list[int],
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
) -> None:
    rows = tuple(t.to(dtype) for t in structured(len(chunks), sum(chunks), *heads, dim))
    wave = run(WaveCache(replace(SMALL, budget=1.0)), rows, chunks)  # type: ignore[arg-type]
    dense = run(DenseCache(), rows, chunks)  # type: ignore[arg-type]
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for one, other in zip(wave, dense, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@RELAXED
@given(chunks=CHUNKS)
def test_every_token_is_held_once_and_unchanged(
    structured: Callable[..., Rows], chunks: list[int]
) -> None:
    rows = structured(7, sum(chunks))
    cache = WaveCache(SMALL)
    run(cache, rows, chunks)
    assert torch.equal(held(cache), rows[1])
    facts = cache.statistics()
    assert facts.tokens == sum(chunks)
    assert facts.bytes == 2 * rows[1].numel() * 4
    clustered = cache._index.segments.totals.tokens
    assert facts.steady_tokens + clustered == facts.tokens


@RELAXED
@given(chunks=CHUNKS, later=CHUNKS, store=STORES)
def test_restore_goes_back_exactly(
    structured: Callable[..., Rows], chunks: list[int], later: list[int], store: Any
) -> None:
    """Also where the store loses something, and twice from the same snapshot."""
    rows = structured(5, sum(chunks) + sum(later))
    cache = WaveCache(replace(SMALL, store_type=store))
    run(cache, rows, chunks)
    snapshot = cache.snapshot()
    steady, segments = cache._steady.view()[0].clone(), len(cache._index.segments)
    first = run(cache, rows, later, sum(chunks))
    for _ in range(2):
        cache.restore(snapshot)
        assert torch.equal(cache._steady.view()[0], steady)
        assert len(cache._index.segments) == segments
        if store == "bf16":
            assert torch.equal(held(cache), rows[1][:, : sum(chunks)])
        second = run(cache, rows, later, sum(chunks))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("store", ["int8", "int4"])
def test_what_was_stored_is_not_kept_twice(structured: Callable[..., Rows], store: Any) -> None:
    """As they came, rows are kept only while a snapshot lives that may reopen their segment."""
    rows = structured(5, 700)
    cache = WaveCache(replace(SMALL, store_type=store))

    def store_and_steady() -> int:
        return cache._store.bytes + cache._steady.bytes

    run(cache, rows, [300])
    assert cache.statistics().bytes == store_and_steady()
    snapshot = cache.snapshot()
    run(cache, rows, [200], 300)
    reopened = len(cache._index.segments) - snapshot.segments
    assert reopened > 1
    kept = reopened * SMALL.segment_tokens * 2 * 2 * 16 * 4
    assert cache.statistics().bytes == store_and_steady() + kept
    del snapshot
    cache.settle()
    assert cache.statistics().bytes == store_and_steady()
    later = cache.snapshot()
    run(cache, rows, [200], 500)
    assert cache.statistics().bytes > store_and_steady()
    cache.restore(later)
    assert cache.statistics().bytes == store_and_steady()


@pytest.mark.parametrize(("store", "most"), [("int8", 0.02), ("int4", 0.3)])
def test_a_prompt_is_read_over_what_the_store_returns(
    structured: Callable[..., Rows], store: Any, most: float
) -> None:
    """Exactly: over decoded keys and values, and the tokens that are not clustered as they came."""
    q, k, v = structured(8, 330)
    cache = WaveCache(replace(SMALL, store_type=store))
    run(cache, (q, k, v), [300])
    decoded = [stored_rows(segment) for segment in cache._index.segments]
    steady = (t[:, : cache._steady.tokens] for t in cache._steady.view())
    k_read, v_read = (
        torch.cat((*stored, own, new[:, 300:]), dim=1)
        for stored, own, new in zip(zip(*decoded, strict=True), steady, (k, v), strict=True)
    )
    assert not torch.equal(k_read.sort(dim=1).values, k.sort(dim=1).values)
    [out] = run(cache, (q, k, v), [30], 300)
    expected, _ = exact_attention(q[:, -1], k_read, v_read)
    torch.testing.assert_close(out[:, -1].double(), expected, atol=1e-5, rtol=1e-5)
    truth, _ = exact_attention(q[:, -1], k, v)
    error = (out[:, -1] - truth).norm(dim=1) / truth.norm(dim=1)
    assert 0 < float(error.median()) < most


@RELAXED
@given(cuts=st.lists(st.integers(1, 299), max_size=6, unique=True))
def test_prefill_chunks_do_not_change_the_index(
    structured: Callable[..., Rows], cuts: list[int]
) -> None:
    rows = structured(2, 300)
    edges = [0, *sorted(cuts), 300]
    caches = [WaveCache(SMALL), WaveCache(SMALL)]
    run(caches[0], rows, [300])
    for start, stop in itertools.pairwise(edges):
        q, k, v = (t[:, start:stop] for t in rows)
        caches[1].attend(q[:, :0], k, v, torch.arange(start, stop))
    whole, parts = (cache._index.segments for cache in caches)
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))
    assert torch.equal(held(caches[0]), held(caches[1]))


@RELAXED
@given(seed=st.integers(0, 20), scheme=st.sampled_from(["wave", "paper"]))
def test_more_budget_never_lowers_the_exact_mass(
    structured: Callable[..., Rows], seed: int, scheme: str
) -> None:
    rows = structured(seed, 301)
    masses = []
    for budget in (0.02, 0.1, 0.3, 0.7, 1.0):
        config = replace(SMALL, budget=budget, scheme=scheme)  # type: ignore[arg-type]
        cache = WaveCache(config)
        run(cache, rows, [300, 1])
        true = _true_exact_mass(cache, rows)
        masses.append(true)
    assert all(a <= b + 1e-5 for a, b in itertools.pairwise(masses))
    assert masses[-1] == pytest.approx(1.0, abs=1e-5)


def _true_exact_mass(cache: WaveCache, rows: Rows) -> float:
    """Share of the dense attention mass of the last query that is attended exactly."""
    q, k = rows[0][:, -1], rows[1]
    exact = cache._index.answer(q, cache._steady.view()).lse_exact
    _, whole = exact_attention(q, k, rows[2])
    return float(torch.exp(exact - whole).mean())


def test_same_tokens_same_bytes(structured: Callable[..., Rows]) -> None:
    rows = structured(11, 400)
    runs = [run(WaveCache(SMALL), rows, [250, *([1] * 150)]) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_lone_token_is_found(structured: Callable[..., Rows]) -> None:
    """One key among 4,000 that the query wants by a wide margin, buried in other topics."""
    config = WaveConfig(segment_tokens=2048, growth_tokens=256, budget=0.02)
    found = 0
    for seed in range(12):
        q, k, v = structured(seed, 4001, dim=32)
        place = 400 + 250 * seed
        wanted = torch.nn.functional.normalize(torch.randn(32), dim=0)
        k[:, place] = k.mean(1) + 12 * wanted
        q[:, -1] = q[:, -1] * 0.1 + 8 * wanted
        v[:, place] = 10.0
        out = run(WaveCache(config), (q, k, v), [4000, 1])[-1]
        dense = run(DenseCache(), (q, k, v), [4000, 1])[-1]
        found += bool((out - dense).norm() < 0.1 * dense.norm())
    assert found >= 11


def test_estimating_all_beats_the_paper(structured: Callable[..., Rows]) -> None:
    """Diffuse attention: what the paper drops weighs."""
    errors = {}
    for scheme in ("wave", "paper"):
        total = 0.0
        for seed in range(5):
            q, k, v = structured(seed, 2001, dim=32)
            v = v + k * 0.5
            config = replace(SMALL, segment_tokens=512, budget=0.02, scheme=scheme)  # type: ignore[arg-type]
            out = run(WaveCache(config), (q * 0.3, k, v), [2000, 1])[-1]
            dense = run(DenseCache(), (q * 0.3, k, v), [2000, 1])[-1]
            total += float((out - dense).norm() / dense.norm())
        errors[scheme] = total / 5
    assert errors["wave"] < 0.7 * errors["paper"]


def test_statistics_count_steps(structured: Callable[..., Rows]) -> None:
    rows = structured(0, 330)
    cache = WaveCache(replace(SMALL, budget=0.1))
    run(cache, rows, [320])
    assert cache.statistics().steps == 0
    run(cache, rows, [1] * 10, 320)
    facts = cache.statistics()
    assert facts.steps == 10
    assert 0 < facts.retrieved_tokens <= facts.tokens
    assert 0 < facts.mass_exact < 1
    assert facts.mass_exact + facts.mass_estimated == pytest.approx(1)
    cache.reset_statistics()
    assert cache.statistics().steps == 0


def test_a_segment_is_taken_up_at_a_place_that_only_the_context_decides(
    structured: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the thread is, and layer after layer."""

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return cluster_segment(*arguments)

    rows = structured(4, 400)
    lengths: dict[tuple[bool, int], list[int]] = {}
    for slow in (False, True):
        if slow:
            monkeypatch.setattr("retrolocal.wave.background.cluster_segment", slowly)
        for layer in (0, 3):
            cache = WaveCache(SMALL, layer=layer)
            run(cache, rows, [60])
            seen = []
            for position in range(60, 400):
                run(cache, rows, [1], position)
                seen.append(len(cache._index.segments))
            lengths[slow, layer] = seen
    assert lengths[False, 0] == lengths[True, 0]
    assert lengths[False, 0].index(1) + 3 == lengths[False, 3].index(1)
    assert lengths[False, 0][-1] > 3


def test_an_exception_of_the_thread_reaches_the_caller(
    structured: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no clusters today")

    monkeypatch.setattr("retrolocal.wave.background.cluster_segment", broken)
    cache = WaveCache(SMALL)
    with pytest.raises(ValueError, match="no clusters today"):
        run(cache, structured(1, 200), [1] * 200)


def test_short_contexts_are_attended_densely(structured: Callable[..., Rows]) -> None:
    """Below the length from which clustering pays, the bytes are those of a dense cache."""
    rows, chunks = structured(9, 500), [120, 80, *([1] * 40), 100, 1, 1, 100, *([1] * 58)]
    wave = WaveCache(SMALL, lengths=Lengths(cluster=lambda: 250))
    outs = run(wave, rows, chunks)
    dense = run(DenseCache(), rows, chunks)
    assert all(torch.equal(a, b) for a, b in zip(outs[:42], dense[:42], strict=True))
    assert len(wave._index.segments) > 3
    assert wave.statistics().kind == "wave"


def test_a_length_is_asked_for_only_when_it_matters(structured: Callable[..., Rows]) -> None:
    def not_yet() -> int:
        raise AssertionError("nothing to cluster yet")

    run(WaveCache(SMALL, lengths=Lengths(cluster=not_yet)), structured(1, 70), [20, 1, 1])


@RELAXED
@given(seed=st.integers(0, 20), cuts=st.lists(st.integers(1, 599), max_size=5, unique=True))
def test_wave_prefill_reading_everything_equals_dense(
    structured: Callable[..., Rows], seed: int, cuts: list[int]
) -> None:
    rows = structured(seed, 600)
    config = replace(SMALL, budget=1.0, prefill_cap=1.0, prefill_descend=1.0)
    chunks = [b - a for a, b in itertools.pairwise([0, *sorted(cuts), 600])]
    wave = run(WaveCache(config, lengths=Lengths(prefill=lambda: 0)), rows, chunks)
    dense = run(DenseCache(), rows, chunks)
    for one, other in zip(wave, dense, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_wave_prefill_covers_every_token(structured: Callable[..., Rows]) -> None:
    """Values that are all one come out as one, whatever is estimated."""
    q, k, v = structured(3, 900)
    cache = WaveCache(SMALL, lengths=Lengths(prefill=lambda: 0))
    [out] = run(cache, (q, k, torch.ones_like(v)), [900])
    torch.testing.assert_close(out, torch.ones_like(out), atol=1e-2, rtol=0)


def test_a_short_prompt_behind_what_was_settled_is_read_step_by_step(
    structured: Callable[..., Rows],
) -> None:
    """The same bits as single steps; longer prompts, and those before, are read exactly."""
    rows = structured(9, 420)
    lengths = Lengths(stepped=6)
    short, steps, exact = (WaveCache(SMALL, lengths=lengths) for _ in range(3))
    first = [run(cache, rows, [150, 5, 195]) for cache in (short, steps, exact)]
    assert all(torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))
    for cache in (short, steps):
        cache.settle()
    [found] = run(short, rows, [6], 350)
    singly = torch.cat(run(steps, rows, [1] * 6, 350), dim=1)
    assert torch.equal(found, singly)
    assert not torch.equal(found, run(exact, rows, [6], 350)[0])
    dense = run(DenseCache(), rows, [350, 6, 7])
    torch.testing.assert_close(run(short, rows, [7], 356)[0], dense[2], atol=0.02, rtol=0.02)
