"""The compiled step against the reference, over shapes, types, budgets and very many tokens."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.config import WaveConfig
from retrolocal.kernels import wave_attention as module
from retrolocal.kernels.codecs import CODED
from retrolocal.kernels.compiled import compiled
from retrolocal.kernels.segment import SegmentTable
from retrolocal.kernels.wave_attention import (
    NEGLIGIBLE_SUMS,
    Selection,
    StepAnswer,
    wave_attention,
    wave_attention_reference,
)

from .conftest import Fetched

pytestmark = pytest.mark.skipif(not compiled(), reason="numba is not installed")

STORES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.bfloat16,
    "int4": torch.bfloat16,
}
"""What the keys and values come as; the plain ones are stored as they come."""
QUICK = {("int8", "bfloat16"), ("int8", "int8"), ("int8", "int4"), ("f32", "float32")}
"""Every pair of types is compiled on its own, which takes a while: the others are slow."""
PAIRS = [
    pytest.param(index, store, marks=() if (index, store) in QUICK else pytest.mark.slow)
    for index in ("int8", "bf16", "f32")
    for store in STORES
]
AUTO = Selection(descend=0.2, tokens=0.1, floor=8, epsilon=0.002)
PAPER = Selection(descend=1.0, tokens=1.0, clusters=0.018, second_order=False, estimated=0.232)
SELECTIONS = {
    "auto": AUTO,
    "auto, sharp": replace(AUTO, sure=0.3, sharp_tokens=0.3, floor=0),
    "auto, sharp, some groups": replace(AUTO, sure=0.3, sharp_descend=0.5, sharp_tokens=0.3),
    "auto, sharp or calm": replace(AUTO, sure=0.3, sharp_tokens=0.3, frozen=0.5, calm=0.05),
    "auto, flat": replace(AUTO, flat=1e9, flat_descend=0.6, flat_tokens=0.3, epsilon=0.0),
    "auto, flat, up to most": replace(AUTO, flat=1e9, flat_tokens=0.5, most=70),
    "auto, not flat": replace(AUTO, flat=1e-9, flat_descend=1.0, flat_tokens=1.0),
    "auto, sharp and flat": replace(
        AUTO, sure=0.3, calm=0.3, frozen=1e9, sharp_tokens=0.3, flat=1e9, flat_tokens=0.5
    ),
    "auto, at least": replace(AUTO, tokens=0.01, least=100, least_groups=7),
    "auto, much": replace(AUTO, tokens=1.0, epsilon=0.05),
    "auto, one level": replace(AUTO, descend=1.0, floor=0),
    "a share": replace(AUTO, descend=0.5, floor=0, epsilon=0.0),
    "budget 0.02": Selection(descend=0.2, tokens=0.02, whole=True),
    "budget 0.25": Selection(descend=0.2, tokens=0.25, whole=True),
    "budget 0.8": Selection(descend=0.2, tokens=0.8, whole=True),
    "budget 1": Selection(descend=0.2, tokens=1.0, whole=True),
    "budget 0.3, one level": Selection(descend=1.0, tokens=0.3, whole=True),
    "paper": PAPER,
    "paper, budget 0.4": replace(PAPER, clusters=0.4, estimated=0.6),
}


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def everything_read() -> Iterator[None]:
    """Value rows are read whatever they weigh."""
    # It takes the constant over when it is imported, which must not be in here.
    importlib.import_module("retrolocal.kernels.wave_attention_numba")
    with ExitStack() as stack:
        for name, kernel in list(sys.modules.items()):
            for constant in ("NEGLIGIBLE_SUMS", "NEGLIGIBLE_VALUES"):
                if name.startswith("retrolocal.kernels.") and hasattr(kernel, constant):
                    stack.enter_context(mock.patch.object(kernel, constant, 0.0))
        yield


def step_config(index: str, selection: Selection = AUTO, store: str = "bf16") -> WaveConfig:
    return WaveConfig(
        cluster_tokens=8,
        group_clusters=4,
        iterations=1,
        outlier_fraction=0.03,
        index_type=index,  # type: ignore[arg-type]
        store_type=store if store in CODED else "bf16",  # type: ignore[arg-type]
        scheme="wave" if selection.second_order else "paper",
    )


def rounding(step: Any) -> float:
    """What logits may be off by: queries meet int8 rows as whole numbers up to 32,767."""
    first = step.segments[0]
    return 1e-3 if torch.int8 in (first.fine.centroids.dtype, first.codec.element) else 1e-4


def on_edge(step: Any, selection: Selection, expected: StepAnswer) -> Tensor:
    """For which KV heads rounding decides what is retrieved, bool [Hkv].

    Ranks fall into buckets and a sum of ranks ends retrieval: where moving ranks or a limit by a
    hair changes the reference's own answer, another order of summation may do so as well.
    """
    edge = torch.zeros(len(expected.retrieved_tokens), dtype=torch.bool)
    plain, hair = module.buckets, rounding(step)
    generator = torch.Generator().manual_seed(0)

    def nudged(ranks: Tensor, way: int) -> Tensor:
        """All up, all down, every other one, at random."""
        at = torch.arange(len(ranks))
        even = (torch.ones_like(at), -torch.ones_like(at), 1 - 2 * (at % 2), 2 * (at % 2) - 1)
        random = 2 * torch.randint(0, 2, at.shape, generator=generator) - 1
        return plain(ranks * (1 + hair * (even[way] if way < len(even) else random)))

    for way in range(10):
        with mock.patch.object(module, "buckets", lambda ranks, way=way: nudged(ranks, way)):
            for limit in (1 - 100 * hair, 1.0, 1 + 100 * hair):
                limits = {"epsilon": selection.epsilon * limit, "sure": selection.sure * limit}
                answer = step.answer(wave_attention_reference, replace(selection, **limits))
                same = (answer.lse_exact == expected.lse_exact).view(len(edge), -1).all(1)
                edge |= ~same | (answer.retrieved_tokens != expected.retrieved_tokens)
    return edge


def assert_alike(step: Any, selection: Selection, found: StepAnswer) -> bool:
    """`found` is what the reference answers, but for heads where rounding decides.

    Returns whether rounding decided nowhere.
    """
    expected = step.answer(wave_attention_reference, selection)
    kv_heads, tolerance = len(expected.retrieved_tokens), rounding(step)
    by_query = (
        (found.out - expected.out).abs().amax(1) <= tolerance,
        (found.lse - expected.lse).abs() <= tolerance,
        (found.lse_exact - expected.lse_exact).abs() <= tolerance,
        (found.mass_exact - expected.mass_exact).abs() <= 0.1 * tolerance,
    )
    alike = torch.stack([x.view(kv_heads, -1).all(1) for x in by_query]).all(0)
    alike &= found.retrieved_tokens == expected.retrieved_tokens
    if alike.all():
        return True
    assert bool((alike | on_edge(step, selection, expected)).all()), (found, expected)
    return False


@pytest.mark.parametrize(("index", "store"), PAIRS)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1), (6, 3), (28, 4)]),
    dim=st.sampled_from([16, 64, 80, 96, 128]),
    lengths=st.lists(st.sampled_from([1, 2, 30]) | st.integers(1, 700), min_size=1, max_size=3),
    selection=st.sampled_from(list(SELECTIONS.values())),
    gain=st.floats(0.02, 0.5),
    equal=st.sampled_from([False] * 9 + [True]),
    number=st.sampled_from([1, 2]),
)
@example(
    seed=7017,
    heads=(4, 2),
    dim=96,
    lengths=[74, 82],
    selection=AUTO,
    gain=0.5,
    equal=False,
    number=1,
)
def test_it_answers_as_the_reference(
    make_step: Callable[..., Any],
    index: str,
    store: str,
    seed: int,
    heads: tuple[int, int],
    dim: int,
    lengths: list[int],
    selection: Selection,
    gain: float,
    equal: bool,
    number: int,
) -> None:
    step = make_step(
        seed,
        lengths,
        heads=heads,
        dim=dim,
        store=STORES[store],
        config=step_config(index, selection, store),
        gain=gain,
        k=torch.ones(heads[1], sum(lengths) + 5, dim) if equal else None,
    )
    with threads(number), everything_read():
        found = step.answer(wave_attention, selection)
        if assert_alike(step, selection, found):
            assert found.bytes <= step.answer(wave_attention_reference, selection).bytes
        least = int(found.retrieved_tokens.sum()) * step.segments[0].codec.token_bytes(dim)
        assert found.bytes >= least


@pytest.mark.parametrize("name", ["auto", "a share", "budget 0.25", "budget 1", "paper"])
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_has_to_be_steady(make_step: Callable[..., Any], name: str, seed: int) -> None:
    step = make_step(seed, [300, 200], heads=(4, 2), config=step_config("f32", SELECTIONS[name]))
    none = tuple(rows[:, :0] for rows in step.steady_rows)
    step, selection = replace(step, steady_rows=none), SELECTIONS[name]
    with everything_read():
        found = step.answer(wave_attention, selection)
        alike = assert_alike(step, selection, found)
    assert alike, "another seed, where rounding decides nothing"
    if name == "budget 1":
        out, lse = step.dense
        torch.testing.assert_close(found.out.double(), out, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.lse.double(), lse, atol=1e-4, rtol=0)


@pytest.mark.parametrize("store", ["bf16", "int8"])
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_rows_that_weigh_nothing_are_not_read(
    make_step: Callable[..., Any], selection: Selection, store: str
) -> None:
    skipped = 0
    for seed in range(4):
        config = step_config("int8", selection, store)
        step = make_step(seed, [600, 90], dim=64, store=torch.bfloat16, config=config, gain=2.0)
        with everything_read():
            everything = step.answer(wave_attention, selection)
            whole, read = everything.out.clone(), everything.bytes
        found = step.answer(wave_attention, selection)
        assert found.bytes <= read
        skipped += found.bytes < read
        torch.testing.assert_close(
            found.out, whole, atol=2 * NEGLIGIBLE_SUMS, rtol=2 * NEGLIGIBLE_SUMS
        )
    assert skipped


@pytest.mark.parametrize("name", ["auto", "budget 0.02", "paper"])
@pytest.mark.parametrize("lead", [-150.0, 150.0])
def test_a_steady_zone_that_weighs_everything_or_nothing(
    make_step: Callable[..., Any], name: str, lead: float
) -> None:
    selection = SELECTIONS[name]
    config = step_config("int8", selection)
    step = make_step(3, [300, 50], dim=64, store=torch.bfloat16, config=config, gain=0.3)
    # Keys moved so that every query's logits move by `lead`.
    queries = step.q.view(len(step.k), -1, 64)
    wanted = torch.full((*queries.shape[:2], 1), lead / step.scale)
    moved = torch.linalg.lstsq(queries, wanted).solution.mT
    k, v = step.steady_rows
    step = replace(step, steady_rows=(k.float() + moved, v.float()))
    expected, found = (
        step.answer(kernel, selection) for kernel in (wave_attention_reference, wave_attention)
    )
    torch.testing.assert_close(found.out, expected.out, atol=2 * NEGLIGIBLE_SUMS, rtol=0)
    torch.testing.assert_close(found.lse_exact, expected.lse_exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.mass_exact, expected.mass_exact, atol=1e-5, rtol=0)
    assert torch.equal(found.retrieved_tokens, expected.retrieved_tokens)


@pytest.mark.parametrize("channel", [8.0, 32.0, 128.0])
@pytest.mark.parametrize("descend", [0.2, 1.0])
def test_estimates_that_were_far_too_high(
    make_step: Callable[..., Any], channel: float, descend: float
) -> None:
    """Keys vary where no query looks: what is left to estimation seems to weigh nothing."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(2, 605, 16, generator=generator)
    k[..., 0] = 0
    k[:, :100] *= 0.3
    k[:, :100, 0] = channel * (1 + torch.rand(100, generator=generator))
    q = 2 * torch.randn(4, 16, generator=generator)
    q[:, 0] = 0
    step = make_step(0, [600], k=k, q=q, store=torch.bfloat16, config=step_config("int8"))
    selection = Selection(descend=descend, tokens=0.4)
    with everything_read():
        assert_alike(step, selection, step.answer(wave_attention, selection))


def test_a_query_may_lie_in_memory_as_it_likes(make_step: Callable[..., Any]) -> None:
    step = make_step(0, [200], dim=64, store=torch.bfloat16, config=step_config("int8"), gain=0.3)
    expected = step.answer(wave_attention, AUTO).out.clone()
    for q in (step.q.T.contiguous().T, step.q.repeat_interleave(2, dim=1)[:, ::2]):
        assert torch.equal(replace(step, q=q).answer(wave_attention, AUTO).out, expected)


def test_the_table_may_grow_and_shrink(make_step: Callable[..., Any]) -> None:
    config = step_config("int8")
    step = make_step(0, [40] * 40, dim=64, store=torch.bfloat16, config=config, gain=0.3)
    fresh = {}
    for count in (1, 3, 40):
        table = SegmentTable()
        for segment in step.segments[:count]:
            table.append(segment)
        fresh[count] = replace(step, segments=table).answer(wave_attention, AUTO).out.clone()
    table = SegmentTable()
    for count in (3, 1, 40, 3, 40, 1):
        table.keep(count)
        for segment in step.segments[len(table) : count]:
            table.append(segment)
        found = replace(step, segments=table).answer(wave_attention, AUTO)
        assert torch.equal(found.out, fresh[count])


@pytest.mark.parametrize("number", [1, 2])
def test_steps_of_several_threads_do_not_meet(make_step: Callable[..., Any], number: int) -> None:
    config = step_config("int8")
    steps = [
        make_step(seed, [300], dim=64, store=torch.bfloat16, config=config, gain=0.3)
        for seed in range(4)
    ]
    with threads(number), ThreadPoolExecutor(4) as pool:
        expected = [step.answer(wave_attention, AUTO).out.clone() for step in steps]

        def again(at: int) -> bool:
            torch.set_num_threads(number)
            outs = (steps[at].answer(wave_attention, AUTO).out for _ in range(25))
            return all([torch.equal(out, expected[at]) for out in outs])

        assert list(pool.map(again, range(4))) == [True] * 4


# More tokens than 32 bits count


@pytest.fixture(scope="module")
def few_keys(make_step: Callable[..., Any]) -> Any:
    """65,536 tokens with 8 different keys, whose clusters and groups estimate exactly in int8."""
    generator = torch.Generator().manual_seed(5)
    signs = torch.randint(0, 2, (4, 16), generator=generator) * 2.0 - 1
    kinds = torch.arange(65_536 + 5) % 8
    k = (torch.cat((signs, -signs)) * 127 / 256)[kinds].expand(2, -1, -1)
    v = (torch.randint(0, 2, (8, 16), generator=generator)[kinds] * 2.0 - 1) * 127 / 128
    config = WaveConfig(
        cluster_tokens=6144, group_clusters=1, iterations=0, index_type="int8", outlier_fraction=0
    )
    q = torch.randn(4, 16, generator=generator)
    v = v.expand(2, -1, -1)
    return make_step(0, [65_536], k=k, v=v, q=q, store=torch.bfloat16, config=config)


@pytest.mark.parametrize(
    ("selection", "clusters"),
    [
        (Selection(descend=0.2, tokens=0.0), 0),
        (Selection(descend=0.2, tokens=1e-5), 2),
        (Selection(descend=1e-5, tokens=1e-5, whole=True), 2),
        (Selection(descend=1.0, tokens=1.0, clusters=1e-5), 3),
    ],
    ids=["nothing", "auto", "budget", "clusters"],
)
def test_more_tokens_than_32_bits_count(few_keys: Any, selection: Selection, clusters: int) -> None:
    copies = 34_000
    [segment] = few_keys.segments
    table = SegmentTable()
    for _ in range(copies):
        table.append(segment)
    assert table.totals.tokens > 2**31
    found = replace(few_keys, segments=table).answer(wave_attention, selection)
    # The steady zone weighs next to nothing among so many.
    out, lse = few_keys.attend(few_keys.k, few_keys.v)
    total = found.lse_exact.double() - found.mass_exact.double().log()
    # Hundreds of thousands of terms are added up in float32.
    torch.testing.assert_close(total, lse + math.log(copies), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.out.double(), out, atol=2e-3, rtol=0)
    retrieved = clusters * 8192
    assert found.retrieved_tokens.tolist() == [retrieved] * 2
    logits = few_keys.q @ few_keys.k[0, :8].float().T * few_keys.scale
    held = math.log(retrieved) if retrieved else -math.inf
    least, most = (
        torch.logaddexp(logit + held, few_keys.steady[1])
        for logit in (logits.amin(1), logits.amax(1))
    )
    assert bool((found.lse_exact >= least - 1e-3).all())
    assert bool((found.lse_exact <= most + 1e-3).all())


@pytest.mark.parametrize("kernel", [wave_attention_reference, wave_attention])
@pytest.mark.parametrize("store", ["float32", "int8", "int4"])
@pytest.mark.parametrize("count", [1, 2])
def test_blocks_that_are_fetched_answer_as_those_in_place(
    make_step: Callable[..., Any], kernel: Any, store: str, count: int
) -> None:
    """The same bits, with all segments elsewhere, the first only, and none."""
    config = step_config("int8", store=store)
    step = make_step(3, [90, 1, 170], store=STORES[store], config=config, gain=0.4)
    with threads(count):
        expected = step.answer(kernel, AUTO)
        out, exact = expected.out.clone(), expected.mass_exact.clone()
        for far in ([0, 1, 2], [0], []):
            fetched = Fetched(step.segments, far)
            answer = kernel(
                step.q,
                step.steady_rows,
                fetched.table,
                AUTO,
                scale=step.scale,
                fetch=fetched.fetch,
            )
            assert torch.equal(answer.out, out)
            assert torch.equal(answer.mass_exact, exact)
            assert answer.bytes == expected.bytes
            assert bool(fetched.asked) == (bool(far) or kernel is wave_attention)
            asked = list(zip(*(one.tolist() for one in fetched.asked), strict=True))
            assert len(set(asked)) == len(asked)
