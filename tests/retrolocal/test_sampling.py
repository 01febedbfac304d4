from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal import sampling
from retrolocal.config import SamplingConfig
from retrolocal.errors import ModelError
from retrolocal.sampling import make_sampler


def neutral(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 1,
) -> SamplingConfig:
    return SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def drawn(config: SamplingConfig, logits: Tensor, times: int = 400) -> set[int]:
    sampler = make_sampler(config)
    return {sampler(logits) for _ in range(times)}


def test_greedy_takes_the_largest() -> None:
    assert make_sampler(neutral(temperature=0))(torch.tensor([0.0, 3.0, -1.0])) == 1


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.zeros(1000)
    logits[[7, 8, 900]] = 2.0
    assert make_sampler(neutral(temperature=0))(logits) == 7


def test_top_k_keeps_k() -> None:
    assert drawn(neutral(top_k=2), logits_of(0.1, 0.4, 0.2, 0.3)) == {1, 3}


def test_top_k_prefers_low_ids_among_equals() -> None:
    assert drawn(neutral(top_k=3), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])) == {0, 1, 2}


def test_top_k_of_zero_and_beyond_the_vocabulary_keep_all() -> None:
    for k in (0, 4, 50):
        assert drawn(neutral(top_k=k), torch.zeros(4)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.0, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 2, 3}),
        (0.95, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_stops_when_the_mass_is_reached(p: float, kept: set[int]) -> None:
    assert drawn(neutral(top_p=p), logits_of(0.1, 0.4, 0.2, 0.3)) == kept


@pytest.mark.parametrize(
    ("p", "kept"), [(1.0, {1}), (0.74, {1, 3}), (0.49, {1, 2, 3}), (0.24, {0, 1, 2, 3})]
)
def test_min_p_is_relative_to_the_likeliest(p: float, kept: set[int]) -> None:
    assert drawn(neutral(min_p=p), logits_of(0.1, 0.4, 0.2, 0.3)) == kept


def test_top_p_judges_what_top_k_left() -> None:
    # Of 0.4 and 0.3 the first has 0.571 of the mass, so 0.5 keeps it alone and 0.6 both.
    logits = logits_of(0.1, 0.4, 0.2, 0.3)
    assert drawn(neutral(top_k=2, top_p=0.5), logits) == {1}
    assert drawn(neutral(top_k=2, top_p=0.6), logits) == {1, 3}


def test_temperature_comes_after_the_cuts() -> None:
    # At temperature 100 all four would be about equally likely and top-p 0.6 would keep three.
    assert drawn(neutral(temperature=100, top_p=0.6), logits_of(0.1, 0.4, 0.2, 0.3)) == {1, 3}


def test_frequencies_follow_the_temperature() -> None:
    sampler = make_sampler(neutral(temperature=0.5))
    counts = Counter(sampler(logits_of(0.2, 0.8)) for _ in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.64 / (0.64 + 0.04), abs=0.02)


def test_a_tiny_temperature_is_greedy() -> None:
    assert drawn(neutral(temperature=1e-30), torch.tensor([1e4, -1e4, 9999.0]), 5) == {0}


def test_the_seed_repeats_the_draws() -> None:
    logits = torch.zeros(1000)
    first, second = make_sampler(neutral(seed=-1)), make_sampler(neutral(seed=-1))
    assert first.seed != second.seed
    draws = [first(logits) for _ in range(20)]
    again = make_sampler(neutral(seed=first.seed))
    assert [again(logits) for _ in range(20)] == draws


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**70, -5])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert make_sampler(neutral(seed=seed))(torch.zeros(3)) in range(3)


def penalized(prompt: list[int], last: int = 64, **penalties: float) -> sampling.Floats:
    """The scores 2, -2, 0 and 1 after the penalties."""
    config = SamplingConfig(repeat_last_n=last, temperature=0, **penalties)  # type: ignore[arg-type]
    sampler = make_sampler(config, prompt)
    scores = np.array([2.0, -2.0, 0.0, 1.0], np.float32)
    return sampling._penalized(scores, sampler._recent.counts, config)


def test_repeat_penalty_divides_and_multiplies() -> None:
    assert penalized([0, 0, 1, 2], repeat_penalty=2.0).tolist() == [1.0, -4.0, 0.0, 1.0]


def test_frequency_counts_and_presence_does_not() -> None:
    assert penalized([0, 0, 0, 1], frequency_penalty=0.5).tolist() == [0.5, -2.5, 0.0, 1.0]
    assert penalized([0, 0, 0, 1], presence_penalty=0.5).tolist() == [1.5, -2.5, 0.0, 1.0]


def test_penalties_look_at_the_last_n() -> None:
    assert penalized([0, 0, 3, 1], 2, presence_penalty=1.0).tolist() == [2.0, -3.0, 0.0, 0.0]
    assert penalized([0] * 100 + [1], -1, frequency_penalty=0.01).tolist() == pytest.approx(
        [1.0, -2.01, 0.0, 1.0]
    )


def test_drawn_tokens_are_penalized_and_forgotten() -> None:
    config = SamplingConfig(temperature=0, presence_penalty=10.0, repeat_last_n=2)
    sampler = make_sampler(config)
    assert [sampler(torch.tensor([3.0, 2.0, 1.0])) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_last_n_of_zero_switches_the_penalties_off() -> None:
    config = SamplingConfig(temperature=0, presence_penalty=10.0, repeat_last_n=0)
    sampler = make_sampler(config, [0, 0])
    assert [sampler(torch.tensor([3.0, 2.0])) for _ in range(3)] == [0, 0, 0]


def test_the_logits_given_are_left_alone() -> None:
    logits = torch.tensor([1.0, 2.0])
    make_sampler(SamplingConfig(repeat_penalty=1.5), [0, 1])(logits)
    assert logits.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "bad", [[math.nan, 1.0], [1.0, math.nan], [-math.inf] * 2, [0.0, math.inf]]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_useless_logits_are_an_error(bad: list[float], temperature: float) -> None:
    with pytest.raises(ModelError, match=r"^the model.*--dtype$"):
        make_sampler(neutral(temperature=temperature))(torch.tensor(bad))


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    for config in (neutral(), neutral(top_k=3), neutral(top_p=0.99), neutral(temperature=1e3)):
        assert drawn(config, logits, 50) == {1, 3}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=20),
    st.integers(0, 25),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 5),
)
def test_draws_come_from_the_straightforward_set(
    values: list[int], k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = torch.tensor(values) / 8
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    kept = order[:k] if k else order
    likely = [math.exp(values[i] / 8) for i in kept]
    mass, end = 0.0, 0
    while end < len(kept) and (end == 0 or mass < top_p - 1e-9):
        mass += likely[end] / sum(likely)
        end += 1
    allowed = {i for i in kept[: end + 1] if values[i] >= values[order[0]] + 8 * _log(min_p)}
    config = neutral(temperature, k, top_p, min_p)
    assert drawn(config, logits, 5) <= allowed


def _log(p: float) -> float:
    return math.log(p) - 1e-6 if p > 0 else -math.inf
