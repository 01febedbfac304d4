"""The decode step for GPUs against the reference: interpreted where there is no GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from retrolocal.config import WaveConfig
from retrolocal.kernels import device_table, wave_attention
from retrolocal.kernels import wave_attention_triton as module
from retrolocal.kernels.segment import SegmentTable, SlotMap
from retrolocal.kernels.wave_attention import Selection, StepAnswer, wave_attention_reference

MakeStep = Callable[..., Any]
Step = Any
"""See conftest.py."""
SMALL = WaveConfig(
    cluster_tokens=8, group_clusters=4, iterations=2, index_type="f32", store_type="bf16"
)
pytestmark = [
    pytest.mark.usefixtures("triton_device"),
    # numpy's, where the interpreter computes lanes that are masked.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

AUTO = Selection(descend=0.2, tokens=0.1, floor=8, epsilon=0.002)
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
    "nothing": replace(AUTO, tokens=0.0, floor=0),
    "easily content": replace(AUTO, epsilon=0.9, floor=0),
    "a share, whole groups": Selection(descend=0.3, tokens=0.5, whole=True),
    "everything": Selection(descend=1.0, tokens=1.0),
    "one level": replace(AUTO, descend=1.0),
    "paper": Selection(descend=1.0, tokens=1.0, clusters=0.05, second_order=False, estimated=0.232),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few programs (the interpreter runs one after another), value sums read however light."""
    monkeypatch.setattr(wave_attention, "NEGLIGIBLE_SUMS", 0.0)
    monkeypatch.setattr(module, "PARTS", module.Parts(2, 3, 2))
    monkeypatch.setattr(device_table, "LEAST", (2, 64, 64, 64))
    module.forget()
    yield
    module.forget()


def answer(step: Step, selection: Selection) -> StepAnswer:
    def kernel(
        q: Tensor,
        steady: tuple[Tensor, Tensor],
        segments: SegmentTable,
        selection: Selection,
        *,
        scale: float,
    ) -> StepAnswer:
        scratch = module.device_scratch(q, segments, selection)
        _poison(scratch)
        scratch.count.fill_(steady[0].shape[1])
        return scratch.step(
            q, steady, scratch.count, segments, selection, scale=scale, negligible=0.0
        )

    return step.answer(kernel, selection)


def _poison(scratch: module.Scratch) -> None:
    """What a kernel leaves unwritten must not be read: NaN, and addresses of nothing."""
    for name, value in vars(scratch).items():
        if isinstance(value, Tensor) and name not in ("count", "_turn", "_shares"):
            value.fill_(math.nan if value.is_floating_point() else 1)


def check(step: Step, selection: Selection, tolerance: float) -> None:
    expected = step.answer(wave_attention_reference, selection)
    found = answer(step, selection)
    assert found.retrieved_tokens.tolist() == expected.retrieved_tokens.tolist()
    assert int(found.bytes.sum() if isinstance(found.bytes, Tensor) else 0) == expected.bytes
    for name in ("out", "lse_exact", "mass_exact"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance
        )


def cast(step: Step, dtype: torch.dtype) -> Step:
    """The step with queries and steady zone in `dtype`."""
    k, v = (rows.to(dtype) for rows in step.steady_rows)
    return replace(step, q=step.q.to(dtype), steady_rows=(k, v))


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS.keys())
def test_says_what_the_reference_says(make_step: MakeStep, selection: Selection) -> None:
    check(make_step(1, (200, 77), heads=(3, 1)), selection, 1e-5)


@pytest.mark.parametrize(
    ("lengths", "heads", "dim"),
    [
        pytest.param((1,), (2, 1), 16, id="one token"),
        pytest.param((65, 1, 130), (5, 1), 80, id="odd lengths, 5 queries, dim 80"),
        pytest.param((90,), (17, 1), 96, id="17 queries, dim 96"),
        pytest.param((90,), (2, 2), 64, id="no groups of queries, dim 64"),
        pytest.param((70,), (2, 1), 256, id="dim 256"),
    ],
)
def test_odd_shapes(
    make_step: MakeStep, lengths: tuple[int, ...], heads: tuple[int, int], dim: int
) -> None:
    check(make_step(2, lengths, heads=heads, dim=dim), AUTO, 3e-5)


@pytest.mark.parametrize(
    ("index", "store", "dtype", "tolerance"),
    [
        ("int8", "int8", torch.float32, 3e-5),
        ("int8", "int4", torch.float32, 3e-5),
        ("bf16", "bf16", torch.float32, 3e-5),
        ("int8", "int8", torch.float16, 3e-3),
        ("int8", "int4", torch.float16, 5e-3),
        ("f32", "bf16", torch.float16, 3e-3),
    ],
)
def test_types_of_index_and_store(
    make_step: MakeStep, index: str, store: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = replace(SMALL, index_type=index, store_type=store)  # type: ignore[arg-type]
    dim = 80 if store == "int4" else 32
    step = make_step(3, (120, 41), heads=(3, 1), dim=dim, config=config, store=dtype)
    check(cast(step, dtype), replace(AUTO, tokens=0.4), tolerance)


def test_follows_a_table_that_grows_and_shrinks(make_step: MakeStep) -> None:
    whole = make_step(4, (70, 30, 50), heads=(2, 1))
    table = SegmentTable()
    for number, segment in enumerate(whole.segments):
        table.append(segment)
        check(replace(whole, segments=table), AUTO, 1e-5)
        generation = module.device_scratch(whole.q, table, AUTO).generation
        assert generation <= number + 1
    table.keep(1)
    check(replace(whole, segments=table), AUTO, 1e-5)


def test_clusters_are_read_from_their_slots(make_step: MakeStep) -> None:
    """A slot map changes nothing but where bytes come from; what was found is counted."""
    step, selection = make_step(5, (100, 40), heads=(2, 2)), replace(AUTO, tokens=0.5)
    expected = step.answer(wave_attention_reference, selection)
    width = step.segments[0].codec.token_bytes(16)
    keys = 2 * step.segments.totals.clusters
    slots = SlotMap(
        places=torch.zeros(keys, dtype=torch.int64),
        asked=torch.zeros(2, 5, dtype=torch.int64),
        counts=torch.zeros(2, 3, dtype=torch.int64),
    )
    held, before = [], 0
    for segment in step.segments:
        for head in range(2):
            starts = segment.starts[head].tolist()
            for c in range(0, segment.clusters, 2):
                slot = segment.blocks[head, starts[c] * width : starts[c + 1] * width].clone()
                held.append(slot)
                if len(slot):
                    slots.places[2 * before + head * segment.clusters + c] = slot.data_ptr()
        before += segment.clusters
    step.segments.slots = slots
    found = answer(step, selection)
    torch.testing.assert_close(found.out, expected.out, rtol=1e-5, atol=1e-5)
    looked_up, hits, listed = slots.counts.T.tolist()
    assert 0 < sum(hits) < sum(looked_up)
    for head in range(2):
        assert listed[head] == min(5, looked_up[head])
        asked = slots.asked[head, : listed[head]]
        keys = torch.where(asked < 0, -1 - asked, asked)
        assert torch.equal(slots.places[keys] != 0, asked < 0)
        assert len(keys.unique()) == len(keys)
    answer(step, selection)
    assert slots.counts[:, :2].tolist() == [
        [2 * a, 2 * h] for a, h in zip(looked_up, hits, strict=True)
    ]


def test_a_step_of_another_number_of_levels_is_captured_anew(make_step: MakeStep) -> None:
    step = make_step(0, [200])
    places = [
        module.step_places(step.q, step.segments, Selection(descend=descend, tokens=0.1))
        for descend in (0.2, 0.3, 1.0)
    ]
    assert places[0] == places[1] != places[2]


def test_the_same_step_gives_the_same_bits(make_step: MakeStep) -> None:
    step = make_step(6, (150,), heads=(4, 2))
    first = answer(step, AUTO).out.clone()
    assert torch.equal(answer(step, AUTO).out, first)


class _NoWaiting(TorchDispatchMode):
    """Fails where a step would wait for the device or move something to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert "_local_scalar_dense" not in name, "a number is read from the device"
        assert name not in ("aten::nonzero", "aten::is_nonzero", "aten::unique"), name
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
        assert len({t.device.type for t in tensors if t.dim()}) <= 1, f"{name} crosses devices"
        return out


@pytest.mark.parametrize("store", ["int8", "int4"])
def test_a_step_never_waits_for_the_device(
    make_step: MakeStep, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """Launches are left out; everything else a step does is looked at."""
    step = make_step(7, (90,), config=replace(SMALL, store_type=store))  # type: ignore[arg-type]
    launched: list[str] = []
    for name in [name for name in vars(module) if name.endswith("_kernel")]:
        monkeypatch.setattr(module, name, _Recorded(name, launched))
    run = module.wave_attention_triton
    run(step.q, step.steady_rows, step.segments, AUTO, scale=1.0)
    launched.clear()
    with _NoWaiting():
        run(step.q, step.steady_rows, step.segments, AUTO, scale=1.0)
    assert len(launched) == 10


class _Recorded:
    """A kernel whose launches are only noted."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self._name, self._launched = name, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(type(size) is int for size in grid), "the grid is read from the device"
        return lambda *args, **kwargs: self._launched.append(self._name)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    seed=st.integers(0, 1 << 16),
    tokens=st.integers(1, 120),
    descend=st.sampled_from([0.05, 0.5, 1.0]),
    share=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    floor=st.sampled_from([0, 3, 1000]),
    epsilon=st.sampled_from([0.0, 0.01, 0.7]),
    gain=st.sampled_from([0.0, 1.0, 6.0]),
)
def test_any_selection(
    make_step: MakeStep,
    seed: int,
    tokens: int,
    descend: float,
    share: float,
    floor: int,
    epsilon: float,
    gain: float,
) -> None:
    step = make_step(seed, (tokens,), heads=(2, 1), gain=gain)
    # Ranks at the edge of a bucket may fall to either side: the sets then differ, not the rules.
    selection = Selection(descend=descend, tokens=share, floor=floor, epsilon=epsilon)
    expected = step.answer(wave_attention_reference, selection)
    found = answer(step, selection)
    torch.testing.assert_close(found.out, expected.out, rtol=2e-2, atol=2e-2)
    assert (found.retrieved_tokens <= max(1, math.ceil(share * tokens))).all()
