"""`retrolocal bench buffer --device cuda`: a layer's clusters over the bus, behind a block cache.

The same recorded decode steps four times: keys and values all in GPU memory; in pinned memory of
the host; there with a block cache of some percent of them on the GPU; and dense attention that
brings all of them over the bus. Each step is one replay. Hits and bytes over the bus are counted
after each step, from what it listed, outside the time taken; each pass begins with nothing cached.

Without a GPU the same code runs under Triton's interpreter, with a device that is the CPU.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import WaveConfig
from ..device import device_name
from ..device_graph import Replay, capture
from ..fidelity import Steady, build_index
from ..kernels.attention import full_attention
from ..kernels.merge import merge
from ..kernels.segment import SegmentTable
from ..kernels.wave_attention import StepAnswer
from ..measurement import Progress, Result
from ..wave.beside import Beside, Mark
from ..wave.device_cache import DeviceBlockCache
from ..wave.index import WaveIndex
from ..wave.store import PinnedStore
from .options import BufferOptions
from .synthetic import AttentionData

PIECE = 65_536
"""Keys that come over the bus at once where all of them do."""


def run(
    options: BufferOptions, data: AttentionData, device: torch.device, progress: Progress
) -> Result:
    """As `bench buffer` asks for it."""
    config = WaveConfig(store_type="int8")
    return measure(data, config, options.share, options.repeats, device, progress)


def measure(
    data: AttentionData,
    config: WaveConfig,
    share: float,
    repeats: int,
    device: torch.device,
    progress: Progress,
) -> Result:
    """`share`: size of the block cache, percent of the store."""
    progress("building the index")
    queries = data.q.to(device)
    index, steady = build_index(data.k.to(device), data.v.to(device), config)
    far = pinned(index, device)
    budget = int(index.store_bytes * share / 100)
    steps = {
        "gpu": Step(index, steady, queries, device),
        "pinned": Step(far, steady, queries, device),
    }
    for step in steps.values():
        step.record()
    found: Result = {}
    for name, step in steps.items():
        progress(f"timing steps: {name}")
        found[name] = _summary([_timed(step.run, queries, device) for _ in range(repeats)])
    passes = []
    for number in range(repeats):
        progress(f"timing steps: block cache of {share:g} %, {number + 1}/{repeats}")
        passes.append(_behind_cache(pinned(index, device), steady, queries, budget, device))
    progress("timing steps: everything over the bus")
    streamed = Streamed(data.k, data.v, device)
    found["stream"] = _summary([_timed(streamed.step, queries, device) for _ in range(repeats)])
    cached = {"ms": statistics.median(one.ms for one in passes), **passes[-1].counts}
    return {
        "device": device_name(device),
        "tokens": data.k.shape[1],
        "q_heads": queries.shape[1],
        "kv_heads": data.k.shape[0],
        "head_dim": data.k.shape[2],
        "steps": len(queries),
        "store_bytes": index.store_bytes,
        "cache_percent": share,
        **found,
        "block_cache": cached,
        "block_cache_over_gpu": cached["ms"] / found["gpu"]["ms"],
        "stream_over_block_cache": found["stream"]["ms"] / cached["ms"],
    }


def pinned(index: WaveIndex, device: torch.device) -> WaveIndex:
    """The same with its store in pinned memory of the host."""
    store, other = PinnedStore(pinned=device.type == "cuda"), copy.copy(index)
    other.segments = SegmentTable()
    for segment in index.segments:
        other.append(store.append(segment))
    return other


class Step:
    """Decode steps of one layer as replays of one."""

    def __init__(
        self, index: WaveIndex, steady: Steady, queries: Tensor, device: torch.device
    ) -> None:
        self._index, self._steady, self._gpu = index, steady, device.type == "cuda"
        self._own = queries[0].clone()
        self._count = torch.tensor([steady[0].shape[1]], dtype=torch.int32, device=device)
        self._replay: Replay | None = None
        self.answer: StepAnswer | None = None
        # Arrays that all steps of a shape share are as large as they will be before one is kept.
        index.prepare_on_device(self._own)

    def record(self) -> None:
        """Captures, on a GPU."""

        def launch() -> None:
            self.answer = self._index.answer_on_device(self._own, self._steady, self._count)

        self._replay = capture(launch) if self._gpu else launch

    def run(self, query: Tensor) -> None:
        assert self._replay is not None, "it was not recorded"
        self._own.copy_(query)
        self._replay()


@dataclass(frozen=True, slots=True)
class _Pass:
    ms: float
    """Median of the second half of the steps: the first fills the block cache."""
    counts: Result
    """Of the second half, per step."""


def _behind_cache(
    index: WaveIndex, steady: Steady, queries: Tensor, budget: int, device: torch.device
) -> _Pass:
    segments = index.segments
    cache = DeviceBlockCache(segments, budget, device)
    for segment in segments:
        cache.append(segment)
    cache.before_step()
    step = Step(index, steady, queries, device)
    step.record()
    taken: list[float] = []
    asked = hits = missed = read = admitted = 0
    half = len(queries) // 2
    for number, query in enumerate(queries):
        cache.before_step()
        taken.append(_milliseconds(partial(step.run, query), device))
        cache.after_step()
        if number < half:
            admitted = cache.admitted_bytes
            continue
        found, absent = cache.listed()
        asked, hits = asked + found + len(absent), hits + found
        missed += int(cache.lengths[absent].sum())
        assert step.answer is not None
        read += int(torch.as_tensor(step.answer.bytes).sum())
    counted = max(1, len(queries) - half)
    return _Pass(
        statistics.median(taken[half:]),
        {
            "bytes": cache.bytes,
            "hit_ratio": hits / max(1, asked),
            "clusters_per_step": asked / counted,
            "bus_bytes_per_step": missed / counted,
            "admitted_bytes_per_step": (cache.admitted_bytes - admitted) / counted,
            "gpu_bytes_per_step": (read - missed) / counted,
        },
    )


class Streamed:
    """Dense attention over keys and values in pinned memory: two pieces are on the GPU at a time,
    one that is attended to and the next, which is on its way."""

    def __init__(self, k: Tensor, v: Tensor, device: torch.device, piece: int = PIECE) -> None:
        both = torch.stack((k, v))
        self._pieces = [
            rows.contiguous().pin_memory() if device.type == "cuda" else rows.contiguous()
            for rows in torch.split(both, piece, dim=2)
        ]
        self._beside, self._device = Beside(device), device
        self._room = [torch.empty_like(self._pieces[0], device=device) for _ in range(2)]

    def step(self, query: Tensor) -> Tensor:
        """query [Hq, D] -> out [Hq, 1, D], float32."""
        parts, q, scale = [], query[:, None], query.shape[1] ** -0.5
        coming = self._bring(0)
        for number in range(len(self._pieces)):
            (keys, values), mark = coming
            if number + 1 < len(self._pieces):
                coming = self._bring(number + 1)
            self._beside.wait(mark)
            parts.append(full_attention(q.to(keys.dtype), keys, values, scale=scale))
        return merge(*parts)[0]

    def _bring(self, number: int) -> tuple[Tensor, Mark]:
        """Begun behind the attention to the piece before the last, which was in the same place."""
        piece = self._pieces[number]
        place = self._room[number % 2][:, :, : piece.shape[2]]
        with self._beside.work():
            place.copy_(piece, non_blocking=True)
        return place, self._beside.mark()


def _timed(step: Callable[[Tensor], object], queries: Tensor, device: torch.device) -> list[float]:
    step(queries[0])
    return [_milliseconds(partial(step, query), device) for query in queries]


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return (time.perf_counter() - began) * 1e3


def _summary(passes: list[list[float]]) -> Result:
    return {"ms": statistics.median(statistics.median(one) for one in passes)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
