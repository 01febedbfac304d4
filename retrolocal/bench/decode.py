"""Whole-model speed at depths, as llama-bench measures it: tokens per second, no sampling.

A depth is reached by handing synthetic keys and values to the layer caches, which is much quicker
than reading a text and leaves caches of the same shape and structure. Every repetition starts
from the same caches and feeds the same random tokens. Before the first one, a step (or one batch
of the prompt) is run that is not counted. Kinds of caches that fit into memory beside each other
are timed in turn, repetition by repetition: a machine's moods are then fair to all.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import Any, cast

import torch
from torch import Tensor

from .. import __version__
from ..caches import AnyCache, layer_caches
from ..config import CacheKind, SessionConfig
from ..device_graph import GraphedModel
from ..generate import Model, prefill
from ..measurement import Progress, Result
from ..models.config import ModelConfig
from ..models.decoder import Decoder
from ..paths import spill_dir
from ..wave.buffer.prefetch import THREADS as READERS
from ..wave.cache import WaveCache
from ..wave.tiers import Tiers
from .model import TimedModel, find_model, fit_beside, open_decoder, require_room
from .options import SpeedOptions
from .synthetic import AttentionData, structured_data

CHUNK = 8192
"""Tokens handed to a cache at once while a depth is filled."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One test: seconds of every repetition, and of every step where it generates."""

    seconds: list[float]
    steps: list[float]


def run(options: SpeedOptions, progress: Progress) -> Result:
    """Runs all tests; raises RetrolocalError, for what does not fit before anything large is made.

    The rows under `results` hold tokens per second, and `step_ms` for generation.
    """
    if options.session.threads:
        torch.set_num_threads(options.session.threads)
    model = find_model(options, progress)
    require_room(model, options)
    in_turn = fit_beside(model, options)
    decoder = open_decoder(model, options, progress)
    data = _synthetic(model, max(options.depths), options.seed, progress)
    groups = [options.caches] if in_turn else [(kind,) for kind in options.caches]
    rows = [
        row
        for depth in options.depths
        for kinds in groups
        for row in _at_depth(_Bench(model, decoder, options, progress), data, depth, kinds)
    ]
    return {
        "version": __version__,
        "weights": "random" if options.random_weights else "checkpoint",
        "repetitions": options.repetitions,
        "in_turn": in_turn,
        "seed": options.seed,
        "results": rows,
    }


@dataclass(frozen=True, slots=True)
class _Bench:
    model: TimedModel
    decoder: Decoder
    options: SpeedOptions
    progress: Progress


@dataclass(frozen=True, slots=True)
class Contender:
    """Caches of all layers with the depth in them, under the name that their rows have."""

    name: str
    caches: Sequence[AnyCache]
    before: Callable[[], None] = lambda: None
    """Called before each repetition."""


def _at_depth(
    bench: _Bench, data: AttentionData | None, depth: int, kinds: Sequence[str]
) -> list[dict[str, object]]:
    """One row for each kind of cache and each test."""
    with ExitStack() as stack:
        contenders = [
            contender
            for kind in kinds
            for contender in _contenders(bench, stack, data, depth, kind)
        ]
        tests = {test: _timed(bench, contenders, depth, test) for test in bench.options.tests}
        return [
            _row(bench.model, one.name, _name_of(test, depth), (*test, depth), timings[number])
            for number, one in enumerate(contenders)
            for test, timings in tests.items()
        ]


def _contenders(
    bench: _Bench, stack: ExitStack, data: AttentionData | None, depth: int, kind: str
) -> Iterator[Contender]:
    """One kind of cache and, where a file is asked for too, the same from there."""
    session = replace(bench.options.session, cache=cast(CacheKind, kind))
    if depth:
        bench.progress(f"filling {kind} caches with {depth:,} tokens")
    caches = filled_caches(
        bench.model.config, session, data, depth, bench.model.dtype, bench.model.device
    )
    yield Contender(kind, caches)
    if bench.options.in_file is None or kind != "wave" or depth == 0:
        return
    for readers in (0, READERS):
        filed = in_file(caches, bench.options.in_file, session, readers)
        moved, tiers = stack.enter_context(filed)
        name = f"{kind}, file, " + (f"{readers} readers" if readers else "nothing ahead")
        yield Contender(name, moved, tiers.drop)


@contextmanager
def in_file(
    caches: Sequence[AnyCache], percent: float, session: SessionConfig, readers: int
) -> Iterator[tuple[list[AnyCache], Tiers]]:
    """The same caches with the clusters of wave caches in a file."""
    held = sum(cache.statistics().bytes for cache in caches if isinstance(cache, WaveCache))
    tiers = Tiers(
        ram_bytes=0, cache_bytes=int(held * percent / 100), folder=spill_dir(), readers=readers
    )
    try:
        moved: list[AnyCache] = []
        for cache in caches:
            if isinstance(cache, WaveCache):
                copied = WaveCache(session.wave, tiers.store(), layer=len(moved))
                copied.load(cache.saved_segments(), cache.saved_rest(), cache.tokens)
                moved.append(copied)
            else:
                moved.append(cache)
        yield moved, tiers
    finally:
        tiers.close()


def _timed(
    bench: _Bench, contenders: Sequence[Contender], depth: int, test: tuple[int, int]
) -> list[Timing]:
    def report(name: str, number: int, speed: float) -> None:
        of = f"{number}/{bench.options.repetitions}"
        bench.progress(f"{_name_of(test, depth)}, {name}: {of}, {speed:.2f} tokens/s")

    return time_test(bench.decoder, contenders, depth, *test, bench.options, report)


def _name_of(test: tuple[int, int], depth: int) -> str:
    """As llama-bench has it: `tg128 @ d131072`."""
    prompt, generated = test
    return (f"pp{prompt}" if prompt else f"tg{generated}") + (f" @ d{depth}" if depth else "")


def filled_caches(
    config: ModelConfig,
    session: SessionConfig,
    data: AttentionData | None,
    depth: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[AnyCache]:
    """A cache for every layer with the first `depth` tokens of `data` in it, settled.

    Layers of one kind get the same tokens: one cache is filled, the others are copies of it with
    memory of their own.
    """
    caches = layer_caches(config, session, dtype, device)
    if data is None or depth == 0:
        return caches
    full: dict[int | None, AnyCache] = {}
    for index, layer in enumerate(config.layers):
        # Pinned memory cannot be copied so: on a GPU every layer is filled by itself.
        if layer.window in full and device.type == "cpu":
            caches[index] = copy.deepcopy(full[layer.window])
            continue
        full[layer.window] = caches[index]
        nothing = torch.empty(config.heads, 0, config.head_dim, dtype=data.k.dtype, device=device)
        for first in range(0, depth, CHUNK):
            end = min(first + CHUNK, depth)
            k, v = (t[:, first:end].to(device) for t in (data.k, data.v))
            caches[index].attend(nothing, k, v, torch.arange(first, end, device=device))
        caches[index].settle()
    return caches


def time_test(
    decoder: Decoder,
    contenders: Sequence[Contender],
    depth: int,
    prompt: int,
    generated: int,
    options: SpeedOptions,
    report: Callable[[str, int, float], None],
) -> list[Timing]:
    """Reads `prompt` tokens, or generates `generated` when that is 0; the caches stay as they are.

    The contenders take turns, repetition by repetition; `report(name, number, tokens per second)`
    is called after each.
    """
    device = next(decoder.parameters()).device
    generator = torch.Generator().manual_seed(options.seed)
    count = prompt or generated
    ids = torch.randint(decoder.config.vocab_size, (count,), generator=generator).to(device)
    timings = [Timing([], []) for _ in contenders]

    def once(caches: Sequence[AnyCache], ids: Tensor) -> list[float]:
        marks: list[Any] = [cache.snapshot() for cache in caches]
        if prompt:
            seconds = [_read(decoder, caches, depth, ids, options.session.batch_size)]
        else:
            seconds = _generate(decoder, caches, depth, ids)
        for cache, mark in zip(caches, marks, strict=True):
            cache.restore(mark)
        return seconds

    for one in contenders:
        once(one.caches, ids[: options.session.batch_size if prompt else 1])
    for number in range(1, options.repetitions + 1):
        for one, timing in zip(contenders, timings, strict=True):
            one.before()
            steps = once(one.caches, ids)
            timing.seconds.append(sum(steps))
            timing.steps.extend(steps if generated else [])
            report(one.name, number, count / sum(steps))
    return timings


def _read(
    decoder: Decoder, caches: Sequence[AnyCache], depth: int, ids: Tensor, batch: int
) -> float:
    """Seconds until a prompt is in the caches, settled, and its last logits are known."""
    began = _now(ids.device)
    for _ in prefill(decoder, caches, ids, depth, chunk_tokens=batch):
        pass
    for cache in caches:
        cache.settle()
    return _now(ids.device) - began


def _generate(decoder: Decoder, caches: Sequence[AnyCache], depth: int, ids: Tensor) -> list[float]:
    """Seconds of each step: one token into the caches, its logits out."""
    positions = torch.arange(depth, depth + ids.shape[0], device=ids.device)
    seconds: list[float] = []
    model: Model = GraphedModel(decoder) if ids.device.type == "cuda" else decoder
    if ids.device.type == "cuda":
        # What is captured is then captured before the first step that counts.
        marks: list[Any] = [cache.snapshot() for cache in caches]
        model(ids[:1], positions[:1], caches, 1)
        for cache, mark in zip(caches, marks, strict=True):
            cache.restore(mark)
    for step in range(ids.shape[0]):
        began = _now(ids.device)
        model(ids[step : step + 1], positions[step : step + 1], caches, 1)
        seconds.append(_now(ids.device) - began)
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _synthetic(
    model: TimedModel, tokens: int, seed: int, progress: Progress
) -> AttentionData | None:
    if tokens == 0:
        return None
    progress(f"drawing keys and values of {tokens:,} tokens")
    return structured_data(
        tokens=tokens,
        q_heads=model.config.heads,
        kv_heads=model.config.kv_heads,
        head_dim=model.config.head_dim,
        steps=1,
        seed=seed,
        dtype=model.dtype,
    )


def _row(
    model: TimedModel, kind: str, test: str, counts: tuple[int, int, int], timing: Timing
) -> dict[str, object]:
    prompt, generated, depth = counts
    speeds = [(prompt or generated) / seconds for seconds in timing.seconds]
    return {
        "model": model.name,
        "params": model.parameters,
        "size_bytes": model.weight_bytes,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cache": kind,
        "test": test,
        "n_prompt": prompt,
        "n_gen": generated,
        "n_depth": depth,
        "samples_tps": speeds,
        "mean_tps": mean(speeds),
        "stddev_tps": stdev(speeds) if len(speeds) > 1 else 0.0,
        "step_ms": step_milliseconds(timing.steps) if timing.steps else None,
    }


def step_milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median, nearest-rank percentiles and maximum."""
    ordered = sorted(1e3 * step for step in seconds)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {
        "median": median(ordered),
        "p95": rank(0.95),
        "p999": rank(0.999),
        "max": ordered[-1],
    }
