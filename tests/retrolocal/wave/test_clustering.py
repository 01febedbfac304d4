"""Clusters of a segment: a partition, plain means, lone tokens taken out, the same every time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrolocal.config import WaveConfig
from retrolocal.wave.clustering import cluster_segment

RELAXED = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RELAXED
@given(tokens=st.integers(1, 300), cluster_tokens=st.integers(1, 40), seed=st.integers(0, 9))
def test_clusters_are_a_partition_with_plain_means(
    structured: Callable[..., tuple[torch.Tensor, ...]],
    tokens: int,
    cluster_tokens: int,
    seed: int,
) -> None:
    _, k, v = structured(seed, tokens)
    made = cluster_segment(k, v, WaveConfig(cluster_tokens=cluster_tokens, outlier_fraction=0.03))
    for head in range(2):
        permutation, offsets = made.permutation[head], made.offsets[head].tolist()
        assert sorted(permutation.tolist()) == list(range(tokens))
        assert offsets[0] == 0
        assert offsets[-1] == tokens
        for cluster, (start, stop) in enumerate(itertools.pairwise(offsets)):
            members = permutation[start:stop]
            if len(members) == 0:
                continue
            centroid = made.mean_key[head] + made.centroids[head, cluster]
            keys = k[head, members].double()
            torch.testing.assert_close(centroid.double(), keys.mean(0), atol=1e-4, rtol=1e-4)
            spread = keys.var(0, unbiased=False).mean()
            torch.testing.assert_close(
                made.spreads[head, cluster].double(), spread, atol=1e-4, rtol=1e-3
            )
            torch.testing.assert_close(
                made.value_sums[head, cluster], v[head, members].sum(0), atol=1e-4, rtol=1e-4
            )


def test_some_head_fills_every_column(
    structured: Callable[..., tuple[torch.Tensor, ...]],
) -> None:
    _, k, v = structured(0, 500)
    made = cluster_segment(k, v, WaveConfig())
    assert int(made.sizes[:, -1].max()) > 0


def test_same_keys_same_clusters(structured: Callable[..., tuple[torch.Tensor, ...]]) -> None:
    _, k, v = structured(3, 2000)
    one, two = (cluster_segment(k.clone(), v.clone(), WaveConfig()) for _ in range(2))
    assert torch.equal(one.permutation, two.permutation)
    assert torch.equal(one.centroids, two.centroids)
    assert torch.equal(one.value_sums, two.value_sums)


def test_the_farthest_tokens_stand_alone(
    structured: Callable[..., tuple[torch.Tensor, ...]],
) -> None:
    _, k, v = structured(1, 1000)
    k[0, 123] += 40.0
    made = cluster_segment(k, v, WaveConfig())
    place = made.permutation[0].tolist().index(123)
    cluster = int(torch.searchsorted(made.offsets[0], place, right=True)) - 1
    assert made.sizes[0, cluster] == 1
    assert made.spreads[0, cluster] == 0


def test_equal_keys_are_no_trouble() -> None:
    k = torch.ones(2, 100, 8)
    made = cluster_segment(k, k, WaveConfig(outlier_fraction=0.0))
    assert int(made.sizes.sum()) == 200
    assert torch.isfinite(made.centroids).all()
