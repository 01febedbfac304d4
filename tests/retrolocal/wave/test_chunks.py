"""Dual chunk attention through a wave cache: the invariants of the plain one hold over ranges."""

from __future__ import annotations

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
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.chunks import ChunkedSegments
from retrolocal.wave.lengths import Lengths, never
from retrolocal.wave.zones import next_growth, next_segment, piece_end

LENGTH = 100
SMALL = WaveConfig(
    segment_tokens=32, growth_tokens=12, window_tokens=8, cluster_tokens=8, iterations=2
)
RELAXED = settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHUNKS = st.lists(st.just(1) | st.integers(1, 150), min_size=1, max_size=12)


@pytest.fixture
def three(structured: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """q [3, heads, tokens, dim] of three kinds, k and v."""

    def make(seed: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = structured(seed, tokens)
        return torch.stack((q, 1.3 * q.roll(3, dims=2), q.flip(2))), k, v

    return make


def run(cache: Any, rows: Any, chunks: list[int], start: int = 0) -> list[Tensor]:
    q, k, v = rows
    out = []
    for count in chunks:
        piece = slice(start, start + count)
        positions = torch.arange(start, start + count)
        out.append(cache.attend(q[..., piece, :], k[:, piece], v[:, piece], positions))
        start += count
    return out


@pytest.mark.parametrize("prefill", ["dense", "wave"])
@RELAXED
@given(chunks=CHUNKS)
def test_full_budget_equals_dense(three: Any, prefill: str, chunks: list[int]) -> None:
    rows = three(len(chunks), sum(chunks))
    config = replace(SMALL, budget=1.0, prefill_descend=1.0, prefill_cap=1.0)
    lengths = Lengths(prefill=lambda: 0) if prefill == "wave" else Lengths()
    wave = WaveCache(config, lengths=lengths, chunk_tokens=LENGTH)
    dense = DenseCache(chunk_tokens=LENGTH)
    for one, other in zip(run(wave, rows, chunks), run(dense, rows, chunks), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


@RELAXED
@given(chunks=CHUNKS, later=CHUNKS, store=st.sampled_from(["bf16", "int8"]))
def test_going_back_and_saving_change_nothing(
    three: Any, chunks: list[int], later: list[int], store: Any
) -> None:
    rows, config = three(5, sum(chunks) + sum(later)), replace(SMALL, store_type=store)
    cache = WaveCache(config, chunk_tokens=LENGTH)
    run(cache, rows, chunks)
    cache.settle()
    snapshot = cache.snapshot()
    loaded = WaveCache(config, chunk_tokens=LENGTH)
    segments = [{name: t.clone() for name, t in x.items()} for x in cache.saved_segments()]
    rest = {name: tensor.clone() for name, tensor in cache.saved_rest().items()}
    loaded.load(segments, rest, cache.tokens)
    first = run(cache, rows, later, sum(chunks))
    cache.restore(snapshot)
    for again in (cache, loaded):
        second = run(again, rows, later, sum(chunks))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_few_tokens_retrieved_come_as_close_as_without_chunks(three: Any) -> None:
    q, k, v = three(3, 730)
    cuts, config = [700] + [1] * 30, replace(SMALL, budget=0.3)
    medians = []
    for length, queries in ((LENGTH, torch.stack((q[0], 1.2 * q[0], 0.9 * q[0]))), (None, q[:1])):
        wave, dense = WaveCache(config, chunk_tokens=length), DenseCache(chunk_tokens=length)
        asked = queries if length is not None else queries[0]
        found, exact = (run(cache, (asked, k, v), cuts)[1:] for cache in (wave, dense))
        errors = [(a - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
        medians.append(torch.stack(errors).median())
        facts = wave.statistics()
        assert 0 < facts.retrieved_tokens < 0.5 * facts.tokens
        assert 0.3 < facts.mass_exact < 1
    # Below half a per cent which of the two is nearer says nothing.
    assert 0 < medians[0] < max(1.2 * medians[1], 0.005)


def test_no_segment_lies_in_two_chunks(three: Any) -> None:
    cache = WaveCache(SMALL, chunk_tokens=LENGTH)
    run(cache, three(1, 450), [430] + [1] * 20)
    segments, start = cache._index.segments, SMALL.sink_tokens
    for segment in segments:
        assert start // LENGTH == (start + segment.tokens - 1) // LENGTH
        start += segment.tokens
    assert start > 3 * LENGTH
    ranges = ChunkedSegments(LENGTH, SMALL.sink_tokens)
    held = [[id(s) for s in table] for table in ranges.of(segments, 450)]
    assert [*held[2], *held[1], *held[0]] == [id(s) for s in segments]
    assert sum(s.tokens for s in ranges.of(segments, 450)[2]) == 3 * LENGTH - SMALL.sink_tokens
    assert sum(s.tokens for s in ranges.of(segments, 450)[1]) == LENGTH
    assert [len(table) for table in ranges.of(segments[:2], 80)] == [2, 0, 0]  # type: ignore[arg-type]


def test_what_was_read_is_known_in_every_range(three: Any) -> None:
    rows, found = three(2, 330), []
    for lengths in (Lengths(), Lengths(cluster=never)):
        cache = WaveCache(SMALL, lengths=lengths, chunk_tokens=LENGTH)
        run(cache, rows, [290])
        cache.reset_statistics()
        run(cache, rows, [1] * 40, 290)
        shares = cache.read_from()
        assert shares is not None
        found.append(shares)
    clustered, dense = found
    assert clustered.shape == dense.shape == (330,)
    torch.testing.assert_close(dense.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    for start in (0, LENGTH, 2 * LENGTH):
        inside = slice(start, min(start + LENGTH, 330))
        assert dense[inside].sum() > 0.02
        torch.testing.assert_close(clustered[inside], dense[inside], atol=2e-4, rtol=0.05)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=30))
def test_zones_with_chunks(steps: list[tuple[int, bool]]) -> None:
    tokens, end = 0, SMALL.sink_tokens
    for count, generating in steps:
        tokens += count
        cutting = next_growth if generating else next_segment
        while (span := cutting(tokens, end, SMALL, LENGTH)) is not None:
            assert span.start == end
            assert 0 < len(span) <= SMALL.segment_tokens
            assert span.start // LENGTH == (span.stop - 1) // LENGTH
            assert span.stop + SMALL.window_tokens <= tokens
            end = span.stop


def test_pieces_end_where_segments_are_cut() -> None:
    ends, end = [], SMALL.sink_tokens
    for tokens in range(1, 500):
        span = next_segment(tokens, end, SMALL, LENGTH)
        if span is not None:
            ends.append(tokens)
            end = span.stop
    for tokens in range(ends[-1]):
        assert piece_end(tokens, SMALL, LENGTH) == next(e for e in ends if e > tokens)


def test_a_piece_of_the_real_size_holds_one_segment() -> None:
    config, length, ends, end = WaveConfig(), 262_144 - 8192, [0], 4
    while ends[-1] < 3 * length:
        ends.append(piece_end(ends[-1], config, length))
        span = next_segment(ends[-1], end, config, length)
        assert span is not None
        end = span.stop
        assert next_segment(ends[-1], end, config, length) is None
