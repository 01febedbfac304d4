"""What only a GPU can show: `pytest -m gpu`. Nothing here runs without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retrolocal.config import WaveConfig
from retrolocal.device_graph import capture
from retrolocal.kernels.attention import full_attention
from retrolocal.kernels.kmeans import (
    assign,
    assign_reference,
    cluster_sums,
    cluster_sums_reference,
)
from retrolocal.kernels.segment import SegmentTable, SlotMap
from retrolocal.kernels.slots import copy_clusters
from retrolocal.kernels.wave_attention import (
    Selection,
    wave_attention,
    wave_attention_reference,
)
from retrolocal.wave.clustering import cluster_segment
from retrolocal.wave.store import PinnedStore

pytestmark = pytest.mark.gpu
AUTO = Selection(descend=0.2, tokens=0.1, floor=8, epsilon=0.002)
ALL = Selection(descend=1.0, tokens=1.0)
LENGTHS = (8192, 8192, 1500)


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    yield
    torch.cuda.synchronize()


def layer(
    *,
    dim: int = 128,
    heads: tuple[int, int] = (28, 4),
    store: str = "int8",
    dtype: torch.dtype = torch.bfloat16,
    lengths: tuple[int, ...] = LENGTHS,
) -> dict[str, Any]:
    """Structured keys in segments on the GPU, their blocks in pinned memory."""
    generator = torch.Generator("cuda").manual_seed(dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    (q_heads, kv_heads), tokens = heads, sum(lengths)
    topics = 2 * normal(kv_heads, 64, dim)
    topic = torch.randint(64, (tokens + 300,), generator=generator, device="cuda")
    keys = topics[:, topic] + 0.7 * normal(kv_heads, tokens + 300, dim)
    values = normal(kv_heads, tokens + 300, dim)
    k, v = keys.to(dtype), values.to(dtype)
    config = WaveConfig(store_type=store)  # type: ignore[arg-type]
    segments, pinned, at = SegmentTable(), PinnedStore(), 0
    for length in lengths:
        rows = (t[:, at : at + length] for t in (k, v))
        segment = cluster_segment(*rows, config)[0]
        segments.append(pinned.append(segment))
        at += length
    wanted = topics[:, 0].repeat_interleave(q_heads // kv_heads, dim=0)
    return {
        "q": (wanted + normal(q_heads, dim)).to(dtype),
        "steady": (k[:, tokens:].contiguous(), v[:, tokens:].contiguous()),
        "segments": segments,
        "all": (k, v),
        "scale": dim**-0.5,
        "store": pinned,
    }


def answer(
    of: dict[str, Any], selection: Selection, kernel: Callable[..., Any] = wave_attention
) -> Any:
    return kernel(of["q"], of["steady"], of["segments"], selection, scale=of["scale"])


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("store", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_numbers_are_those_of_float64(dim: int, store: str, dtype: torch.dtype) -> None:
    """Everything retrieved is dense attention, up to the codec; misses are read from the host."""
    of = layer(dim=dim, store=store, dtype=dtype, heads=(12, 2))
    k, v = (t.double().repeat_interleave(6, dim=0) for t in of["all"])
    scores = (k @ of["q"].double()[..., None])[..., 0] * of["scale"]
    exact = (torch.softmax(scores, dim=1)[:, None] @ v)[:, 0]
    error = (answer(of, ALL).out - exact).norm() / exact.norm()
    assert error < {"bf16": 0.01, "int8": 0.03, "int4": 0.25}[store]


@pytest.mark.parametrize("heads", [(4, 4), (28, 4), (17, 1), (32, 2)], ids=str)
@pytest.mark.parametrize("store", ["bf16", "int8", "int4"])
def test_says_what_the_reference_says(heads: tuple[int, int], store: str) -> None:
    of = layer(heads=heads, store=store)
    for selection in (AUTO, replace(AUTO, sure=0.3, sharp_tokens=0.2), replace(AUTO, descend=1.0)):
        found = answer(of, selection)
        expected = answer(of, selection, wave_attention_reference)
        error = (found.out - expected.out).norm() / expected.out.norm()
        assert error < 0.02
        assert torch.allclose(
            found.retrieved_tokens.double(),
            expected.retrieved_tokens.double().to("cuda"),
            rtol=0.05,
            atol=64,
        )


def test_repeated_steps_give_the_same_bits() -> None:
    """A race would show in some of so many repetitions."""
    of = layer()
    first = answer(of, AUTO).out.clone()
    for _ in range(500):
        assert torch.equal(answer(of, AUTO).out, first)


def test_a_step_waits_for_nothing() -> None:
    of = layer()
    answer(of, AUTO)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        answer(of, AUTO)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        answer(of, AUTO)
    names = {event.key for event in profile.key_averages()}
    assert not names & {"aten::item", "aten::_local_scalar_dense", "cudaStreamSynchronize"}


def test_a_replayed_graph_says_what_a_step_says() -> None:
    of = layer()
    out = torch.empty(28, 128, device="cuda")
    replay = capture(lambda: out.copy_(answer(of, AUTO).out))
    for _ in range(3):
        of["q"].copy_(of["q"].roll(1, dims=0))
        replay()
        found = out.clone()
        assert torch.equal(found, answer(of, AUTO).out)


def test_clusters_come_from_slots_and_the_rest_from_the_host() -> None:
    of = layer()
    expected = answer(of, AUTO).out.clone()
    keys = 4 * of["segments"].totals.clusters
    slots = SlotMap(
        places=torch.zeros(keys, dtype=torch.int64, device="cuda"),
        asked=torch.zeros(4, 4096, dtype=torch.int64, device="cuda"),
        counts=torch.zeros(4, 3, dtype=torch.int64, device="cuda"),
    )
    of["segments"].slots = slots
    answer(of, AUTO)
    asked = slots.asked[0, : int(slots.counts[0, 2])]
    assert len(asked) > 8
    segment = of["segments"][0]
    width = segment.codec.token_bytes(128)
    own = [int(key) for key in asked if int(key) < segment.clusters][:8]
    starts = segment.starts[0].tolist()
    sources = [segment.blocks.data_ptr() + starts[c] * width for c in own]
    lengths = [(starts[c + 1] - starts[c]) * width for c in own]
    arena = torch.zeros(
        sum(-(-n // 64) * 64 for n in lengths) + 64, dtype=torch.uint8, device="cuda"
    )
    targets, at = [], arena.data_ptr()
    for length in lengths:
        targets.append(at)
        at += -(-length // 64) * 64
    copy_clusters(*(torch.tensor(x, device="cuda") for x in (sources, targets, lengths)))
    slots.places[torch.tensor(own, device="cuda")] = torch.tensor(targets, device="cuda")
    assert torch.equal(answer(of, AUTO).out, expected)
    assert int(slots.counts[0, 1]) == len(own)
    assert int((slots.asked[0, : int(slots.counts[0, 2])] < 0).sum()) == len(own)


def test_k_means_steps() -> None:
    keys = torch.randn(4, 5000, 128, device="cuda")
    centroids = torch.nn.functional.normalize(torch.randn(4, 500, 128, device="cuda"), dim=2)
    found, expected = assign(keys, centroids), assign_reference(keys, centroids)
    rows = torch.arange(4, device="cuda")[:, None]
    chosen, best = ((keys * centroids[rows, labels]).sum(2) for labels in (found, expected))
    assert (best - chosen).max() < 0.05
    sums = cluster_sums(keys, found, 500)
    exact = cluster_sums_reference(keys.double(), found, 500)
    torch.testing.assert_close(sums.double(), exact, rtol=1e-4, atol=1e-3)
    assert torch.equal(sums, cluster_sums(keys, found, 500))


def test_exact_parts_use_flash_attention() -> None:
    q, k, v = (
        torch.randn(n, m, 80, device="cuda").bfloat16() for n, m in ((8, 33), (2, 999), (2, 999))
    )
    out, lse = full_attention(q, k, v, scale=0.1)
    group = (t.float().repeat_interleave(4, dim=0) for t in (k, v))
    wide_k, wide_v = group
    scores = q.float() @ wide_k.transpose(1, 2) * 0.1
    torch.testing.assert_close(lse, torch.logsumexp(scores, dim=2), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        out.float(), torch.softmax(scores, dim=2) @ wide_v, rtol=5e-2, atol=5e-2
    )
