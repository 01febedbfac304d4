"""The invariants of the wave cache as properties over lengths, chunks, shapes, dtypes, budgets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.cache import DenseCache
from retrolocal.config import WaveConfig
from retrolocal.kernels.attention import grouped
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.clustering import cluster_segment
from retrolocal.wave.index import WaveIndex

Rows = tuple[Tensor, Tensor, Tensor]
SMALL = WaveConfig(
    segment_tokens=64, growth_tokens=20, window_tokens=8, cluster_tokens=8, iterations=4
)
RELAXED = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
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
    segments = [cache._in_token_order(n)[0] for n in range(cache._index.segments)]
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
    index = cache._index
    clustered = int(index._sizes[0, : index.clusters].sum()) if index.segments else 0
    assert facts.steady_tokens + clustered == facts.tokens


@RELAXED
@given(chunks=CHUNKS, later=CHUNKS)
def test_restore_goes_back_exactly(
    structured: Callable[..., Rows], chunks: list[int], later: list[int]
) -> None:
    rows = structured(5, sum(chunks) + sum(later))
    cache = WaveCache(SMALL)
    run(cache, rows, chunks)
    snapshot = cache.snapshot()
    first = run(cache, rows, later, sum(chunks))
    cache.restore(snapshot)
    assert torch.equal(held(cache), rows[1][:, : sum(chunks)])
    second = run(cache, rows, later, sum(chunks))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
    whole, parts = (cache._index for cache in caches)
    if all(stop - start > 1 for start, stop in itertools.pairwise(edges)):
        assert whole.clusters == parts.clusters
        assert torch.equal(whole._centroids, parts._centroids) or whole.clusters == 0
        assert torch.equal(held(caches[0]), held(caches[1]))


def index_of(k: Tensor, v: Tensor, config: WaveConfig) -> tuple[WaveIndex, Tensor]:
    made = cluster_segment(k, v, config)
    index = WaveIndex()
    index.append(made)
    return index, made.permutation


@RELAXED
@given(seed=st.integers(0, 50), gain=st.floats(0.1, 3.0))
def test_first_order_never_exceeds_the_true_mass(
    structured: Callable[..., Rows], seed: int, gain: float
) -> None:
    q, k, v = structured(seed, 200)
    index, permutation = index_of(k, v, SMALL)
    queries = grouped(q[:, -1:] * gain, 2)
    estimated = index.log_mass(queries, scale=0.25, second_order=False)
    for head in range(2):
        for cluster in range(index.clusters):
            [(_, start, stop)] = index.runs(head, torch.tensor([cluster]))
            if start == stop:
                assert estimated[head, 0, cluster] == -math.inf
                continue
            keys = k[head, permutation[head, start:stop]]
            true = torch.logsumexp(queries[head] @ keys.T * 0.25, dim=1)
            assert (estimated[head, :, cluster] <= true + 1e-4).all()
            if stop - start == 1:
                torch.testing.assert_close(estimated[head, :, cluster], true, atol=1e-4, rtol=1e-4)


@RELAXED
@given(seed=st.integers(0, 50))
def test_clusters_of_one_are_estimated_exactly(structured: Callable[..., Rows], seed: int) -> None:
    """With a cluster per token the estimate is the attention itself, to second order too."""
    q, k, v = structured(seed, 40)
    index, _ = index_of(k, v, replace(SMALL, cluster_tokens=1, outlier_fraction=0.99))
    queries = grouped(q[:, -1:], 2)
    out, _ = index.estimate(index.log_mass(queries, scale=0.25, second_order=True))
    sizes = index._sizes[:, : index.clusters]
    if int(sizes.max()) > 1:
        return
    exact = torch.softmax(queries @ k.transpose(1, 2) * 0.25, -1) @ v
    torch.testing.assert_close(out, exact, atol=1e-4, rtol=1e-3)


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
    """Share of the dense attention mass of the next query that would be attended exactly."""
    from retrolocal.wave.attention import _ranking

    queries = grouped(rows[0][:, -1:], 2)
    index, config = cache._index, cache._config
    log_mass = index.log_mass(queries, scale=0.25, second_order=config.scheme == "wave")
    order, retrieved = _ranking(index, log_mass, config)
    shares = []
    for head, chosen in enumerate(retrieved):
        near, _ = cache._store.gather(head, index.runs(head, order[head, :chosen]))
        keys = torch.cat((cache._steady.view()[0][head], near))
        exact = torch.logsumexp(queries[head] @ keys.T * 0.25, dim=1)
        total = torch.logsumexp(queries[head] @ rows[1][head].T * 0.25, dim=1)
        shares.append(torch.exp(exact - total))
    return float(torch.cat(shares).mean())


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
