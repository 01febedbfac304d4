"""Clusters and groups of a segment: a partition, plain means, lone tokens, the same every time."""

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

from retrolocal.config import WaveConfig
from retrolocal.kernels.segment import Level, Segment, nbytes
from retrolocal.wave.clustering import cluster_segment
from retrolocal.wave.zones import groups, initial_centroids, outliers

Rows = tuple[Tensor, Tensor, Tensor]
RELAXED = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
F32 = WaveConfig(index_type="f32", store_type="bf16", iterations=3, group_clusters=4)


def assert_sums(
    level: Level, number: int, segment: Segment, head: int, tokens: slice, *, loose: bool = False
) -> None:
    """A cluster's (or group's) centroid, value sum and spread are those of its tokens."""
    keys, values = (rows[tokens].double() for rows in segment.rows(head))
    centroid = level.keys(head)[number].double()
    spread, total = level.spreads[head, number].double(), level.values(head)[number].double()
    if len(keys) == 0:
        assert not centroid.any()
        assert not total.any()
        assert spread == 0
        return
    keys = keys - segment.mean_key[head].double()
    torch.testing.assert_close(centroid, keys.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(total, values.sum(0), atol=1e-4, rtol=1e-4)
    expected = keys.var(0, unbiased=False).mean()
    # Kept in bfloat16; a group's is added up from those of its clusters.
    torch.testing.assert_close(spread, expected, atol=1e-4, rtol=2**-7)
    if len(keys) == 1:
        assert spread == 0 or loose


@RELAXED
@given(
    tokens=st.integers(1, 300),
    cluster_tokens=st.integers(1, 40),
    fraction=st.sampled_from([0.0, 0.03, 0.3]),
    seed=st.integers(0, 9),
)
def test_clusters_and_groups_are_partitions_with_plain_means(
    structured: Callable[..., Rows], tokens: int, cluster_tokens: int, fraction: float, seed: int
) -> None:
    _, k, v = structured(seed, tokens)
    config = replace(F32, cluster_tokens=cluster_tokens, outlier_fraction=fraction)
    made, permutation = cluster_segment(k, v, config)
    assert made.singles == outliers(tokens, config)
    assert made.grouped == initial_centroids(tokens, config)
    assert made.groups == groups(made.grouped, config)
    assert all(tensor.is_contiguous() for tensor in made.tensors())
    for head in range(2):
        order = permutation[head].long()
        assert order.sort().values.tolist() == list(range(tokens))
        for rows, given_rows in zip(made.rows(head), (k, v), strict=True):
            assert torch.equal(rows, given_rows[head, order])
        starts, offsets = made.starts[head].tolist(), made.group_offsets[head].tolist()
        assert (starts[0], starts[-1]) == (0, tokens)
        for cluster, (start, stop) in enumerate(itertools.pairwise(starts)):
            assert start <= stop
            assert_sums(made.fine, cluster, made, head, slice(start, stop))
        sizes = made.starts[head].diff().tolist()
        assert offsets[0] == 0
        assert all(sizes[: offsets[-1]])
        assert not any(sizes[offsets[-1] : made.grouped])
        assert sizes[made.grouped :] == [1] * made.singles
        for group, (first, last) in enumerate(itertools.pairwise(offsets)):
            assert first <= last
            run = slice(starts[first], starts[last])
            assert made.group_sizes(head)[group] == run.stop - run.start
            assert_sums(made.coarse, group, made, head, run, loose=True)


@pytest.mark.parametrize("index_type", ["int8", "bf16", "f32"])
def test_index_types_differ_by_rounding_only(
    structured: Callable[..., Rows], index_type: str
) -> None:
    _, k, v = structured(2, 400)
    exact, order = cluster_segment(k, v, F32)
    made, same = cluster_segment(k, v, replace(F32, index_type=index_type))  # type: ignore[arg-type]
    assert torch.equal(order, same)
    assert torch.equal(made.starts, exact.starts)
    assert torch.equal(made.group_offsets, exact.group_offsets)
    tolerance = {"int8": 1 / 127, "bf16": 2**-8, "f32": 0.0}[index_type]
    for level, other in ((made.fine, exact.fine), (made.coarse, exact.coarse)):
        assert torch.equal(level.spreads, other.spreads)
        for head in range(2):
            for rows, expected in (
                (level.keys(head), other.keys(head)),
                (level.values(head), other.values(head)),
            ):
                largest = expected.abs().amax(dim=1, keepdim=True)
                assert bool(((rows - expected).abs() <= tolerance * largest).all())


def test_the_store_keeps_its_type(structured: Callable[..., Rows]) -> None:
    _, k, v = structured(0, 100)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        made, _ = cluster_segment(k.to(dtype), v.to(dtype), F32)
        assert [rows.dtype for rows in made.rows(0)] == [dtype] * 2
        assert made.mean_key.dtype == torch.float32
        assert made.starts.dtype == made.group_offsets.dtype == torch.int32


@pytest.mark.parametrize("scheme", ["wave", "paper"])
def test_same_keys_same_bytes(structured: Callable[..., Rows], scheme: str) -> None:
    _, k, v = structured(3, 2000)
    config = WaveConfig(scheme=scheme)  # type: ignore[arg-type]
    one, two = (cluster_segment(k.clone(), v.clone(), config) for _ in range(2))
    assert torch.equal(one[1], two[1])
    for mine, theirs in zip(one[0].tensors(), two[0].tensors(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_farthest_tokens_stand_alone(structured: Callable[..., Rows]) -> None:
    """Without rounds of k-means it is known by a loop which tokens those are."""
    _, k, v = structured(1, 500)
    config = replace(F32, iterations=0, outlier_fraction=0.02)
    made, permutation = cluster_segment(k, v, config)
    count = initial_centroids(500, config)
    for head in range(2):
        keys = k[head].double() - k[head].double().mean(0)
        units = torch.nn.functional.normalize(keys[[i * 500 // count for i in range(count)]], dim=1)
        labels = (keys @ units.T).argmax(1)
        distance = torch.zeros(500, dtype=torch.float64)
        for label in labels.unique():
            members = keys[labels == label]
            others = len(members) - 1
            apart = (members - members.mean(0)).norm(dim=1) * len(members) / max(others, 1)
            distance[labels == label] = apart if others else members.norm(dim=1)
        alone = permutation[head, -made.singles :].tolist()
        assert made.singles == 10
        assert alone == sorted(distance.topk(10).indices.tolist())


def test_a_token_far_from_all_others_stands_alone(structured: Callable[..., Rows]) -> None:
    _, k, v = structured(1, 1000)
    k[0, 123] += 40.0
    made, permutation = cluster_segment(k, v, WaveConfig())
    place = permutation[0].tolist().index(123)
    starts = made.starts[0].tolist()
    assert place in starts
    assert place + 1 in starts


def test_the_paper_has_no_singles(structured: Callable[..., Rows]) -> None:
    _, k, v = structured(1, 1000)
    made, _ = cluster_segment(k, v, WaveConfig(scheme="paper"))
    assert made.singles == 0
    assert made.clusters == math.ceil(1000 / 16)
    assert int(made.group_offsets[0, -1]) == int((made.starts[0].diff() > 0).sum())


@pytest.mark.parametrize("tokens", [1, 2, 16, 500])
def test_equal_keys_are_no_trouble(tokens: int) -> None:
    k = torch.full((2, tokens, 8), 3.0)
    made, permutation = cluster_segment(k, k, WaveConfig())
    assert permutation.long().sort(dim=1).values.tolist() == [list(range(tokens))] * 2
    for level in (made.fine, made.coarse):
        assert not level.centroids.any()
        assert not level.spreads.any()
    assert int(made.starts[0].diff().sum()) == tokens


@pytest.mark.parametrize("dim", [64, 80, 96, 128])
def test_the_index_is_small(structured: Callable[..., Rows], dim: int) -> None:
    _, k, v = structured(0, 8192, 1, 1, dim)
    k, v = k.bfloat16(), v.bfloat16()
    made = {
        name: cluster_segment(k, v, WaveConfig(index_type=name, iterations=0))[0]  # type: ignore[arg-type]
        for name in ("bf16", "int8")
    }
    store = nbytes(k, v)
    assert made["bf16"].fine_bytes <= store / 15
    assert made["bf16"].coarse_bytes <= store / 120
    assert made["int8"].fine_bytes <= 0.58 * made["bf16"].fine_bytes
    assert made["int8"].coarse_bytes <= 0.58 * made["bf16"].coarse_bytes
