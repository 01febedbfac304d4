"""Zone arithmetic, exhaustively at small sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.config import WaveConfig
from retrolocal.errors import UsageError
from retrolocal.wave.zones import (
    estimated_clusters,
    initial_centroids,
    next_segment,
    outliers,
    retrieved_clusters,
)

SMALL = WaveConfig(segment_tokens=16, growth_tokens=6, sink_tokens=2, window_tokens=3)


def segments(steps: list[tuple[int, bool]], config: WaveConfig) -> tuple[list[range], int]:
    """The segments cut while (tokens appended, generating) steps go by, and the tokens held."""
    cut: list[range] = []
    tokens, end = 0, config.sink_tokens
    for count, generating in steps:
        tokens += count
        while (span := next_segment(tokens, end, config, generating=generating)) is not None:
            cut.append(span)
            end = span.stop
    return cut, tokens


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=30))
def test_every_token_is_in_one_zone(steps: list[tuple[int, bool]]) -> None:
    cut, tokens = segments(steps, SMALL)
    edges = [SMALL.sink_tokens, *(span.stop for span in cut)]
    assert [span.start for span in cut] == edges[:-1]
    assert all(0 < len(span) <= SMALL.segment_tokens for span in cut)
    if cut:
        assert tokens - cut[-1].stop >= SMALL.window_tokens
    pending = tokens - SMALL.window_tokens - edges[-1]
    assert pending < SMALL.segment_tokens
    if steps[-1][1]:
        assert pending <= SMALL.growth_tokens


@pytest.mark.parametrize("tokens", range(120))
def test_prefill_chunks_do_not_move_the_segments(tokens: int) -> None:
    whole, _ = segments([(tokens, False)], SMALL) if tokens else ([], 0)
    single, _ = segments([(1, False)] * tokens, SMALL)
    assert whole == single


@given(st.integers(1, 100_000), st.floats(0.0001, 1.0))
def test_budget(clusters: int, budget: float) -> None:
    chosen = retrieved_clusters(clusters, WaveConfig(budget=budget))
    assert 1 <= chosen <= clusters
    assert estimated_clusters(clusters, chosen, WaveConfig(budget=budget)) == clusters - chosen
    more = retrieved_clusters(clusters, WaveConfig(budget=min(1.0, budget * 1.5)))
    assert more >= chosen


def test_full_budget_retrieves_all() -> None:
    assert retrieved_clusters(777, WaveConfig(budget=1.0)) == 777


def test_the_paper_reads_a_quarter() -> None:
    config = WaveConfig(scheme="paper")
    assert retrieved_clusters(8192, config) == 147
    assert estimated_clusters(8192, 147, config) == 1901
    assert outliers(8192, config) == 0


def test_auto_never_takes_fewer_than_its_floor() -> None:
    config = WaveConfig()
    assert [retrieved_clusters(n, config) for n in (5, 100, 10_000)] == [5, 64, 180]


def test_clusters_of_a_segment() -> None:
    assert initial_centroids(8192, WaveConfig()) == 512
    assert initial_centroids(1, WaveConfig()) == 1
    assert outliers(8192, WaveConfig()) == 81


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.01, float("nan")])
def test_a_budget_out_of_range_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="--budget"):
        WaveConfig(budget=budget)
