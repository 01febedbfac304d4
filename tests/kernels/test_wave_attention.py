"""What a decode step promises: selection against a loop, the estimate, and the zones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.config import WaveConfig
from retrolocal.kernels.segment import Level, Segment
from retrolocal.kernels.wave_attention import (
    BUCKETS,
    NEGLIGIBLE_SUMS,
    NEGLIGIBLE_VALUES,
    Kernel,
    Selection,
    StepAnswer,
    buckets,
    log_mass,
    select,
    wave_attention,
    wave_attention_reference,
)

RELAXED = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(deadline=None, max_examples=200)
KERNELS = pytest.mark.parametrize("kernel", [wave_attention_reference, wave_attention])
"""The second is compiled, on a CPU with numba."""
ALL = Selection(descend=0.2, tokens=1.0, whole=True)
NOTHING = Selection(descend=1.0, tokens=0.0)
F32 = WaveConfig(
    cluster_tokens=8, group_clusters=4, iterations=2, index_type="f32", store_type="bf16"
)
SELECTIONS = {
    "auto": Selection(descend=0.2, tokens=0.05, floor=4, epsilon=0.002),
    "sharp": Selection(descend=0.2, tokens=0.05, sure=0.9, sharp_tokens=0.3, epsilon=0.002),
    "early end": Selection(descend=0.5, tokens=0.2, epsilon=0.05),
    "budget": Selection(descend=0.2, tokens=0.3, whole=True),
    "one level": Selection(descend=1.0, tokens=0.1),
    "nothing": NOTHING,
}


# Selection


def bucket_of(rank: float) -> int:
    """16 equal steps per power of two from 2^-32 on, counted from 0."""
    if rank < 2.0**-32:
        return 0
    mantissa, exponent = math.frexp(rank)
    return 16 * (exponent - 1 + 32) + int(32 * mantissa) - 16


def taken_by_loop(
    ranks: list[float],
    sizes: list[int],
    *,
    mass: float,
    tokens: int,
    clusters: int,
    floor: int,
    epsilon: float,
) -> list[bool]:
    taken = [False] * len(ranks)
    order = sorted(range(len(ranks)), key=lambda i: -bucket_of(ranks[i]))
    held = number = 0
    ranked = 0.0
    for place, i in enumerate(order):
        ends_bucket = place == 0 or bucket_of(ranks[order[place - 1]]) != bucket_of(ranks[i])
        if ends_bucket and number >= floor and 0 < epsilon > mass - ranked:
            break
        if held + sizes[i] > tokens or number + 1 > clusters:
            break
        taken[i] = True
        held, number, ranked = held + sizes[i], number + 1, ranked + ranks[i] * sizes[i]
    return taken


RANK = st.builds(
    lambda mantissa, exponent: float(torch.tensor(mantissa * 2.0**exponent)),
    st.sampled_from([1.0, 1.0624, 1.0626, 1.5]) | st.floats(1, 2, width=32, exclude_max=True),
    st.sampled_from([-1, 0, 1]) | st.integers(-50, 7),
) | st.just(0.0)
ENTRIES = st.lists(st.tuples(RANK, st.integers(0, 30) | st.just(1)), max_size=40)


@MANY
@given(RANK)
def test_buckets(rank: float) -> None:
    [found] = buckets(torch.tensor([rank])).tolist()
    assert found == bucket_of(rank)
    assert 0 <= found < BUCKETS


@MANY
@given(
    ENTRIES,
    st.just(10_000) | st.integers(0, 400),
    st.just(100) | st.integers(0, 45),
    st.integers(0, 3) | st.integers(0, 45),
    st.sampled_from([0.0, 1e-6, 0.1]) | st.floats(0, 4),
    st.sampled_from([0.0, 1.0]) | st.floats(0, 2),
)
def test_selection_is_the_obvious_loop(
    entries: list[tuple[float, int]],
    tokens: int,
    clusters: int,
    floor: int,
    epsilon: float,
    more_mass: float,
) -> None:
    ranks, sizes = [rank for rank, _ in entries], [size for _, size in entries]
    rules = {
        "mass": sum(rank * size for rank, size in entries) + more_mass,
        "tokens": tokens,
        "clusters": clusters,
        "floor": floor,
        "epsilon": epsilon,
    }
    taken = select(torch.tensor(ranks), torch.tensor(sizes, dtype=torch.int64), **rules)
    assert taken.tolist() == taken_by_loop(ranks, sizes, **rules)


@MANY
@given(
    ENTRIES,
    st.tuples(st.integers(0, 300), st.integers(0, 40), st.floats(0, 3), st.integers(0, 40)),
    st.tuples(st.integers(0, 100), st.integers(0, 10), st.floats(0, 1), st.integers(0, 9)),
)
def test_more_never_takes_less(
    entries: list[tuple[float, int]],
    base: tuple[int, int, float, int],
    more: tuple[int, int, float, int],
) -> None:
    ranks = torch.tensor([rank for rank, _ in entries])
    sizes = torch.tensor([size for _, size in entries], dtype=torch.int64)

    def take(tokens: int, clusters: int, epsilon: float, floor: int) -> Tensor:
        return select(
            ranks,
            sizes,
            mass=float((ranks.double() * sizes).sum()),
            tokens=tokens,
            clusters=clusters,
            floor=floor,
            epsilon=epsilon,
        )

    least = take(*base)
    tokens, clusters, epsilon, floor = base
    for changed in (
        (tokens + more[0], clusters, epsilon, floor),
        (tokens, clusters + more[1], epsilon, floor),
        (tokens, clusters, epsilon * more[2], floor),
        (tokens, clusters, epsilon, floor + more[3]),
        (tokens + more[0], clusters + more[1], epsilon * more[2], floor + more[3]),
    ):
        assert not bool((least & ~take(*changed)).any())


@MANY
@given(ENTRIES, st.integers(0, 50))
def test_a_floor_is_taken_whatever_its_mass(entries: list[tuple[float, int]], floor: int) -> None:
    ranks = torch.tensor([rank for rank, _ in entries])
    sizes = torch.tensor([size for _, size in entries], dtype=torch.int64)
    rules = {"tokens": int(sizes.sum()), "clusters": len(entries), "epsilon": 1e9}
    taken = select(ranks, sizes, mass=0.0, floor=floor, **rules)
    assert int(taken.sum()) >= min(floor, len(entries))
    if floor == 0:
        assert not taken.any()


# The estimate


LOG_SIZES = st.integers(1, 100_000).map(math.log)


def masses(scores: float, log_size: float, variance: float) -> float:
    rows = (torch.tensor([x], dtype=torch.float64) for x in (scores, log_size, variance))
    return float(log_mass(*rows))


@MANY
@given(st.floats(-100, 100), LOG_SIZES, st.floats(0, 1000))
def test_log_mass_by_its_formula(score: float, log_size: float, variance: float) -> None:
    found = masses(score, log_size, variance)
    if variance <= 2 * log_size:
        expected = log_size + score + variance / 2
    else:
        expected = score + math.sqrt(2 * variance * log_size)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found >= score + log_size - 1e-9
    assert found <= log_size + score + variance / 2 + 1e-9


@MANY
@given(st.floats(-100, 100), LOG_SIZES, st.floats(0, 1e-6))
def test_log_mass_has_no_step(score: float, log_size: float, little: float) -> None:
    edge = 2 * log_size
    below, above = (masses(score, log_size, max(0.0, edge + x)) for x in (-little, little))
    assert below == pytest.approx(above, abs=2e-6 if log_size > 0 else 0)


def test_log_mass_of_one_token_and_of_none() -> None:
    scores = torch.tensor([[3.5, -7.25, 80.0]])
    assert torch.equal(log_mass(scores, torch.zeros(3), torch.zeros(1, 1)), scores)
    nothing = log_mass(scores, torch.full((3,), -math.inf), torch.tensor([[0.0, 1.0, 50.0]]))
    assert nothing.tolist() == [[-math.inf] * 3]


def runs(segment: Segment, head: int) -> list[tuple[Level, int, slice]]:
    """Level, number and tokens of every cluster and group."""
    starts, offsets = segment.starts[head].tolist(), segment.group_offsets[head].tolist()
    fine = [(segment.fine, c, slice(*starts[c : c + 2])) for c in range(segment.clusters)]
    return fine + [
        (segment.coarse, m, slice(starts[offsets[m]], starts[offsets[m + 1]]))
        for m in range(segment.groups)
    ]


@RELAXED
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 1), tokens=st.integers(1, 300))
def test_first_order_never_exceeds_the_true_mass(
    make_step: Callable[..., Any], seed: int, gain: float, tokens: int
) -> None:
    step = make_step(seed, [tokens], gain=gain)
    [segment] = step.segments
    for head, q in enumerate(step.q.double().chunk(2)):
        for level, number, run in runs(segment, head):
            key = (level.keys(head)[number] + segment.mean_key[head]).double()
            true = torch.logsumexp(q @ segment.rows(head)[0][run].double().T * step.scale, dim=1)
            size = torch.tensor(float(run.stop - run.start), dtype=torch.float64)
            first_order = log_mass(q @ key * step.scale, size.log(), torch.zeros(1))
            assert bool((first_order <= true + 1e-4).all())
            if size == 1:
                assert level.spreads[head, number] == 0
                torch.testing.assert_close(first_order, true, atol=1e-4, rtol=0)


# The zones


def total_mass(answer: StepAnswer) -> Tensor:
    """Log of the whole mass as a step estimates it, float64 [Hq]."""
    return answer.lse_exact.double() - answer.mass_exact.double().log()


@KERNELS
@RELAXED
@given(
    seed=st.integers(0, 1000),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1)]),
    dim=st.sampled_from([8, 16, 64]),
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=3),
    gain=st.floats(0.1, 1),
)
def test_a_budget_of_one_is_dense_attention(
    make_step: Callable[..., Any],
    kernel: Kernel,
    seed: int,
    heads: tuple[int, int],
    dim: int,
    lengths: list[int],
    gain: float,
) -> None:
    step = make_step(seed, lengths, heads=heads, dim=dim, gain=gain)
    answer = step.answer(kernel, ALL)
    out, lse = step.dense
    unread = NEGLIGIBLE_SUMS * float(step.v.abs().max())
    torch.testing.assert_close(answer.out.double(), out, atol=1e-4 + unread, rtol=0)
    torch.testing.assert_close(answer.lse_exact.double(), lse, atol=1e-4, rtol=0)
    torch.testing.assert_close(answer.mass_exact, torch.ones(heads[0]), atol=1e-6, rtol=0)
    assert answer.retrieved_tokens.tolist() == [sum(lengths)] * heads[1]


@KERNELS
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("lengths", [[1], [300], [100, 3, 41]], ids=str)
def test_every_token_is_in_one_zone(
    make_step: Callable[..., Any], kernel: Kernel, selection: Selection, lengths: list[int]
) -> None:
    """Where all keys are equal every estimate is exact: a token lost or counted twice shows.

    Values of one make the output one.
    """
    tokens = sum(lengths) + 5
    k = torch.arange(16.0).expand(2, tokens, 16) / 4
    step = make_step(0, lengths, k=k, v=torch.ones(2, tokens, 16))
    answer = step.answer(kernel, selection)
    torch.testing.assert_close(answer.out, torch.ones(4, 16), atol=2e-6, rtol=0)
    expected = (step.q @ k[0, 0] * step.scale).double() + math.log(tokens)
    torch.testing.assert_close(total_mass(answer), expected, atol=2e-5, rtol=0)
    exact = (answer.retrieved_tokens + 5).repeat_interleave(2) / tokens
    torch.testing.assert_close(answer.mass_exact, exact.float(), atol=2e-6, rtol=0)


@KERNELS
@pytest.mark.parametrize("descend", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("tokens", [0.0, 0.03, 0.3, 1.0])
def test_equal_keys_apart_from_others(
    make_step: Callable[..., Any], kernel: Kernel, descend: float, tokens: float
) -> None:
    """Few different keys, one cluster and one group each: estimates are exact at both levels."""
    kinds = torch.arange(305) % 5
    k = 4 * torch.eye(16)[kinds].repeat(2, 1, 1)
    v = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))[kinds].repeat(2, 1, 1)
    config = replace(F32, cluster_tokens=4, group_clusters=1, outlier_fraction=0.0)
    step = make_step(0, [240, 60], k=k, v=v, config=config, gain=0.3)
    for segment in step.segments:
        assert segment.starts.diff().bool().sum(1).tolist() == [5, 5]
        assert segment.group_offsets.diff().bool().sum(1).tolist() == [5, 5]
    answer = step.answer(kernel, Selection(descend=descend, tokens=tokens, epsilon=1e-6))
    out, lse = step.dense
    torch.testing.assert_close(total_mass(answer), lse, atol=1e-4, rtol=0)
    torch.testing.assert_close(answer.out.double(), out, atol=2 * NEGLIGIBLE_VALUES, rtol=0)


@KERNELS
def test_what_a_token_weighs_ranks_not_what_a_cluster_weighs(
    make_step: Callable[..., Any], kernel: Kernel
) -> None:
    """Two clusters, of 10 heavy tokens and of 190 light ones that weigh more together."""
    kinds = (torch.arange(205) % 20 > 0).long()
    k = torch.eye(16)[kinds].repeat(2, 1, 1)
    q = (2 * torch.eye(16)[0] - torch.eye(16)[1]).repeat(4, 1)
    config = replace(F32, cluster_tokens=100, group_clusters=1, outlier_fraction=0.0)
    step = make_step(0, [200], k=k, q=q, config=config)
    assert sorted(step.segments[0].starts.diff()[0].tolist()) == [10, 190]
    for tokens in (0.05, 0.5, 0.96):
        answer = step.answer(kernel, Selection(descend=1.0, tokens=tokens))
        assert answer.retrieved_tokens.tolist() == [10, 10]


@KERNELS
@RELAXED
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 1))
def test_clusters_of_one_are_attended_without_being_read(
    make_step: Callable[..., Any], kernel: Kernel, seed: int, gain: float
) -> None:
    config = replace(F32, cluster_tokens=1, outlier_fraction=0.0)
    step = make_step(seed, [40, 11], config=config, gain=gain)
    answer = step.answer(kernel, NOTHING)
    out, lse = step.dense
    assert answer.retrieved_tokens.tolist() == [0, 0]
    assert bool((answer.mass_exact < 1).all())
    torch.testing.assert_close(total_mass(answer), lse, atol=1e-4, rtol=0)
    torch.testing.assert_close(answer.out.double(), out, atol=4 * NEGLIGIBLE_SUMS, rtol=0)


@KERNELS
@RELAXED
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 1), descend=st.sampled_from([0.1, 0.4, 1.0]))
def test_a_larger_budget_never_attends_less(
    make_step: Callable[..., Any], kernel: Kernel, seed: int, gain: float, descend: float
) -> None:
    step = make_step(seed, [300, 57], gain=gain)
    before, held = step.steady[1], torch.zeros(2, dtype=torch.int64)
    for tokens in (0.02, 0.1, 0.3, 0.7, 1.0):
        answer = step.answer(kernel, Selection(descend=descend, tokens=tokens, whole=True))
        assert bool((answer.lse_exact >= before - 1e-5).all())
        assert bool((answer.retrieved_tokens >= held).all())
        before, held = answer.lse_exact.clone(), answer.retrieved_tokens.clone()
    torch.testing.assert_close(before.double(), step.dense[1], atol=1e-4, rtol=0)


@KERNELS
@RELAXED
@given(seed=st.integers(0, 1000), gain=st.floats(0.1, 1), share=st.sampled_from([0.3, 0.6, 0.99]))
def test_a_budget_is_spent_where_few_groups_would_do(
    make_step: Callable[..., Any], kernel: Kernel, seed: int, gain: float, share: float
) -> None:
    """Groups are added until they hold enough, and retrieved whole."""
    step = make_step(seed, [300, 57], gain=gain)
    wanted = math.ceil(share * 357)
    groups = [segment.group_sizes(head) for segment in step.segments for head in range(2)]
    largest = int(torch.cat(groups).max())
    assume(largest + step.segments.totals.singles < wanted)
    answer = step.answer(kernel, Selection(descend=1e-9, tokens=share, whole=True))
    assert all(wanted <= held < wanted + largest for held in answer.retrieved_tokens.tolist())


@KERNELS
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_minimum_holds_however_short_the_context(
    make_step: Callable[..., Any], kernel: Kernel, share: float
) -> None:
    config = replace(F32, cluster_tokens=1, outlier_fraction=0.0)
    step = make_step(0, [200], config=config, gain=0.3)
    for least, expected in ((0, 200 * share), (15, max(15, 200 * share)), (10_000, 200)):
        answer = step.answer(kernel, Selection(descend=1.0, tokens=share, least=least))
        assert answer.retrieved_tokens.tolist() == [expected] * 2


@KERNELS
def test_groups_left_out_are_not_believed_where_attention_is_sharp(
    make_step: Callable[..., Any], kernel: Kernel
) -> None:
    """All are looked into where they claim less than `sure`, and `sharp_tokens` may be more."""
    step = make_step(4, [300, 57], gain=0.7)
    few, limit = Selection(descend=0.1, tokens=0.05), math.ceil(0.05 * 357)

    def retrieved(sure: float, sharp_tokens: float) -> list[int]:
        selection = replace(few, sure=sure, sharp_tokens=sharp_tokens)
        return step.answer(kernel, selection).retrieved_tokens.tolist()

    assert max(retrieved(1e-30, 1.0)) <= limit
    assert retrieved(1.0, 1.0) == [357, 357]
    assert limit / 3 < min(retrieved(1.0, 0.01)) <= max(retrieved(1.0, 0.01)) <= limit


def variances_of(step: Any) -> torch.Tensor:
    """Of a group's logits, on the mean over groups and queries: two that differ, [2]."""
    spreads = torch.cat([s.coarse.spreads.float() for s in step.segments], dim=1).mean(1)
    norms = (step.q.float() * step.scale).square().sum(1).view(len(spreads), -1).mean(1)
    variances = norms * spreads
    assert variances[0] != variances[1]
    return variances


@KERNELS
def test_more_is_read_where_attention_is_flat(
    make_step: Callable[..., Any], kernel: Kernel
) -> None:
    """Below `flat`, for each KV head; up to `most` tokens."""
    step = make_step(4, [300, 57], gain=0.7)
    few = Selection(descend=0.1, tokens=0.05)
    more = replace(few, descend=0.9, tokens=0.3)
    flat = replace(few, flat_descend=0.9, flat_tokens=0.3)
    variances = variances_of(step)

    def read(selection: Selection) -> list[tuple[int, list[float]]]:
        answer = step.answer(kernel, selection)
        tokens, outs = answer.retrieved_tokens.tolist(), answer.out.view(len(variances), -1)
        return list(zip(tokens, outs.tolist(), strict=True))

    one, two = read(few), read(more)
    assert all(a != b for a, b in zip(one, two, strict=True))
    between = float(variances.mean())
    expected = [
        (two if variance < between else one)[head]
        for head, variance in enumerate(variances.tolist())
    ]
    assert read(replace(flat, flat=between)) == expected
    assert read(replace(flat, flat=0.0)) == one
    assert read(replace(flat, flat=1e9)) == two
    assert read(replace(flat, flat=1e9, most=40)) == read(replace(more, most=40))


@KERNELS
@pytest.mark.parametrize("sure", [1e-30, 1.0])
def test_what_may_be_left_out_depends_on_how_much_logits_vary(
    make_step: Callable[..., Any], kernel: Kernel, sure: float
) -> None:
    """`sure` from `frozen` on, `calm` below, for each KV head."""
    step = make_step(4, [300, 57], gain=0.7)
    few = Selection(descend=0.1, tokens=0.05, sharp_tokens=1.0)
    variances = variances_of(step)

    def retrieved(selection: Selection) -> list[int]:
        return step.answer(kernel, selection).retrieved_tokens.tolist()

    frozen = float(variances.mean())
    expected = (
        retrieved(replace(few, sure=sure if variance >= frozen else 1.0 - sure))[head]
        for head, variance in enumerate(variances.tolist())
    )
    chosen = replace(few, sure=sure, calm=1.0 - sure, frozen=frozen)
    assert retrieved(chosen) == list(expected)
    assert len({tokens == 357 for tokens in retrieved(chosen)}) == 2


@KERNELS
@pytest.mark.parametrize("channel", [0.0, 8.0, 32.0, 128.0])
@pytest.mark.parametrize("descend", [0.2, 1.0])
def test_values_count_where_an_estimate_was_far_too_high(
    make_step: Callable[..., Any], kernel: Kernel, channel: float, descend: float
) -> None:
    """A channel of the keys varies and no query looks at it: spreads say much, logits nothing."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(2, 605, 16, generator=generator)
    k[:, :100] *= 0.3
    k[..., 0] = 0
    k[:, :100, 0] = channel * (1 + torch.rand(100, generator=generator))
    q = 2 * torch.randn(4, 16, generator=generator)
    q[:, 0] = 0
    step = make_step(0, [600], k=k, v=torch.ones_like(k), q=q)
    answer = step.answer(kernel, Selection(descend=descend, tokens=0.4, epsilon=1e-9))
    torch.testing.assert_close(answer.out, torch.ones(4, 16), atol=2 * NEGLIGIBLE_SUMS, rtol=0)


@KERNELS
@pytest.mark.parametrize(
    ("tokens", "retrieved", "estimated"), [(1000, 18, 232), (900, 16, 209), (10, 1, 2)]
)
def test_the_paper_reads_a_quarter_and_drops_the_rest(
    make_step: Callable[..., Any], kernel: Kernel, tokens: int, retrieved: int, estimated: int
) -> None:
    """Clusters of one and a query of zero: every cluster weighs the same."""
    config = WaveConfig(scheme="paper", cluster_tokens=1, iterations=1, index_type="f32")
    step = make_step(0, [tokens], config=config, q=torch.zeros(4, 16))
    selection = Selection(
        descend=1.0, tokens=1.0, clusters=0.018, second_order=False, estimated=0.232
    )
    answer = step.answer(kernel, selection)
    assert answer.retrieved_tokens.tolist() == [retrieved] * 2
    exact = torch.full((4,), (5 + retrieved) / (5 + retrieved + estimated))
    torch.testing.assert_close(answer.mass_exact, exact)
    torch.testing.assert_close(answer.lse_exact, torch.full((4,), 5.0 + retrieved).log())
