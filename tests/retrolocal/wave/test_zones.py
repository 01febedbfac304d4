"""Zone arithmetic, exhaustively at small sizes, and what a query reads under which settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.config import WaveConfig
from retrolocal.errors import UsageError
from retrolocal.wave.index import for_length, selection
from retrolocal.wave.zones import (
    fewest_tokens,
    groups,
    initial_centroids,
    next_growth,
    next_segment,
    outliers,
    pending,
)

SMALL = WaveConfig(segment_tokens=16, growth_tokens=6, sink_tokens=2, window_tokens=3)


def segments(steps: list[tuple[int, bool]], config: WaveConfig) -> tuple[list[range], int]:
    """The segments cut while (tokens appended, generating) steps go by, and the tokens held."""
    cut: list[range] = []
    tokens, end = 0, config.sink_tokens
    for count, generating in steps:
        tokens += count
        cutting = next_growth if generating else next_segment
        while (span := cutting(tokens, end, config)) is not None:
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
    waiting = tokens - SMALL.window_tokens - edges[-1]
    assert waiting == pending(tokens, edges[-1], SMALL)
    assert waiting < (SMALL.growth_tokens if steps[-1][1] else SMALL.segment_tokens)


@pytest.mark.parametrize("tokens", range(120))
def test_prefill_chunks_do_not_move_the_segments(tokens: int) -> None:
    whole, _ = segments([(tokens, False)], SMALL) if tokens else ([], 0)
    single, _ = segments([(1, False)] * tokens, SMALL)
    assert whole == single


@given(
    st.integers(1, 20_000),
    st.integers(1, 100),
    st.sampled_from([0.0, 0.01, 0.5, 0.99]) | st.floats(0, 0.99),
    st.integers(1, 20),
)
def test_clusters_of_a_segment(tokens: int, size: int, fraction: float, together: int) -> None:
    config = WaveConfig(cluster_tokens=size, outlier_fraction=fraction, group_clusters=together)
    alone, centroids = outliers(tokens, config), initial_centroids(tokens, config)
    assert alone == math.floor(fraction * tokens) < tokens
    assert 1 <= centroids <= tokens
    assert alone + centroids == max(alone + 1, math.ceil(tokens / size))
    assert 1 <= groups(centroids, config) <= centroids
    assert abs(groups(centroids, config) - centroids / together) <= 1


def test_clusters_by_default() -> None:
    assert outliers(8192, WaveConfig()) == 81
    assert initial_centroids(8192, WaveConfig()) == 431
    assert groups(431, WaveConfig()) == 54
    assert initial_centroids(1, WaveConfig()) == groups(1, WaveConfig()) == 1
    paper = WaveConfig(scheme="paper")
    assert outliers(8192, paper) == 0
    assert initial_centroids(8192, paper) == 512


def test_a_query_adapts_by_default() -> None:
    config = WaveConfig(descend=0.3, least_groups=5, cap=0.05, least=9, floor=7, epsilon=0.01)
    chosen = selection(replace(config, sure=0.02, sharp_cap=0.1))
    assert (chosen.descend, chosen.least_groups) == (0.3, 5)
    assert (chosen.tokens, chosen.least) == (0.05, 9)
    assert (chosen.floor, chosen.epsilon) == (7, 0.01)
    assert (chosen.sure, chosen.sharp_tokens) == (0.02, 0.1)
    assert (chosen.flat, chosen.flat_descend, chosen.flat_tokens) == (6.0, 0.25, 0.035)
    assert chosen.second_order
    assert not chosen.whole
    assert chosen.clusters == math.inf
    assert chosen.estimated == 1.0


@pytest.mark.parametrize(
    ("groups", "least", "share", "tokens"),
    [
        (512, 256, 1.0, 0.03),
        (513, 64, 1.0, 0.03),
        (4096, 64, 1.0, 0.03),
        (8192, 64, 0.5, 0.04),
        (100_000, 64, 0.2, 0.04),
    ],
)
def test_sharp_attention_looks_everywhere_in_all_but_very_long_texts(
    groups: int, least: int, share: float, tokens: float
) -> None:
    chosen = for_length(selection(WaveConfig()), groups)
    assert (chosen.least_groups, chosen.sharp_descend) == (least, share)
    assert chosen.sharp_tokens == tokens
    assert chosen.descend == WaveConfig().descend


@pytest.mark.parametrize(("groups", "share"), [(0, 1.0), (4096, 1.0), (8192, 0.5), (100_000, 0.15)])
def test_a_budget_looks_everywhere_in_all_but_very_long_texts(groups: int, share: float) -> None:
    chosen = for_length(selection(WaveConfig(budget=0.2)), groups)
    assert (chosen.descend, chosen.whole) == (share, share < 1)
    assert (chosen.tokens, chosen.epsilon, chosen.sure) == (0.2, 0.0, 0.0)


@given(st.floats(0.0001, 1.0))
def test_a_budget_is_spent_whole(budget: float) -> None:
    chosen = selection(WaveConfig(budget=budget))
    assert (chosen.tokens, chosen.least, chosen.floor) == (budget, 0, 0)
    assert (chosen.epsilon, chosen.sure) == (0.0, 0.0)
    assert chosen.whole
    assert chosen.estimated == 1.0


@pytest.mark.parametrize(
    ("budget", "retrieved", "estimated"),
    [(None, 0.018, 0.232), (0.5, 0.5, 0.232), (0.9, 0.9, 0.1), (1.0, 1.0, 0.0)],
)
def test_the_paper_reads_shares_of_the_clusters(
    budget: float | None, retrieved: float, estimated: float
) -> None:
    chosen = selection(WaveConfig(scheme="paper", budget=budget))
    assert (chosen.descend, chosen.tokens, chosen.epsilon) == (1.0, 1.0, 0.0)
    assert not chosen.second_order
    assert chosen.clusters == retrieved
    assert chosen.estimated == pytest.approx(estimated)


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.01, float("nan")])
def test_a_budget_out_of_range_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="--budget"):
        WaveConfig(budget=budget)


def test_the_fewest_tokens_of_which_some_are_clustered() -> None:
    for config in (SMALL, replace(SMALL, segment_tokens=4), replace(SMALL, sink_tokens=0)):
        fewest = fewest_tokens(config)
        assert segments([(fewest - 1, True)], config)[0] == []
        assert len(segments([(fewest, True)], config)[0]) == 1
