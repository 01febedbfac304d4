"""`retrolocal bench buffer`: a layer's clusters in a file, behind a block cache, against RAM.

Three buffers fetch the clusters of the same recorded decode steps: one over RAM, which has nothing
to do, one over a file, and one over the file with threads that read ahead. Before each pass the
file leaves the page cache and the block cache is made anew. The attention that follows a fetch is
the program's own step over the same clusters in RAM: a slot is RAM too.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..amounts import told_apart
from ..config import SessionConfig, WaveConfig
from ..device import choose_device
from ..errors import DataError, StoreError
from ..fidelity import require_clustered
from ..measurement import Progress, Result
from ..memory import MemoryEstimate, require
from ..wave.buffer.buffer import WaveBuffer
from ..wave.buffer.policy import DEFAULT, POLICIES
from ..wave.buffer.prefetch import Prefetcher
from ..wave.buffer.source import BlockSource, FileSource, RamSource
from ..wave.buffer.statistics import BufferStatistics
from ..wave.buffer.table import Ints
from ..wave.clustering import cluster_segment
from ..wave.index import WaveIndex
from ..wave.zones import next_growth
from . import device_buffer
from .attention import first_of, read_data
from .options import BufferOptions
from .synthetic import AttentionData, structured_answer
from .trace import Recorder, Trace, guesses, recall, replay

ROOM = 1.05
"""Free bytes asked of a disk per byte that is written."""


def run(options: BufferOptions, progress: Progress) -> Result:
    """Raises DataError, MemoryLimitError and StoreError before anything large is made."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(SessionConfig(device=options.device))
    data = _data(options, progress)
    if device.type == "cuda":
        return device_buffer.run(options, data, device, progress)
    folder = Path(tempfile.gettempdir() if options.folder is None else options.folder)
    _require_disk(folder, 2 * data.k.numel() * data.k.element_size())
    progress("building the index")
    layer = _Layer.of(data)
    progress("recording what the steps retrieve")
    trace = [layer.recorder.retrieved(q) for q in data.q]
    guessed = guesses(data.q, options.foresight, options.seed)
    ahead = [layer.recorder.retrieved(q) for q in guessed]
    asked = np.concatenate(trace)
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "tokens": data.k.shape[1],
        "q_heads": data.q.shape[1],
        "kv_heads": data.k.shape[0],
        "head_dim": data.k.shape[2],
        "steps": len(trace),
        "store_bytes": int(layer.lengths.sum()),
        "clusters": int((layer.lengths > 0).sum()),
        "retrieved_clusters": len(asked) / len(trace),
        "bytes_per_step": float(layer.lengths[asked].sum()) / len(trace),
        "foresight": {"cosine": options.foresight, "recall": recall(trace, ahead)},
        "policy": DEFAULT,
        **_timed(options, layer, data.q, trace, ahead, folder, progress),
        "results": list(_hits(options, layer, trace, progress)),
    }


@dataclass(frozen=True, slots=True)
class _Layer:
    index: WaveIndex
    steady: tuple[Tensor, Tensor]
    recorder: Recorder
    blocks: list[Tensor]
    """Of each segment uint8 [Hkv, N, W]: a token's key and value one after the other, tokens in
    cluster order."""
    spans: list[tuple[Ints, Ints]]
    """Of each segment: offsets and lengths of its clusters, bytes [Hkv, C]."""
    lengths: Ints
    """Of all clusters, by key."""

    @classmethod
    def of(cls, data: AttentionData) -> _Layer:
        config = WaveConfig()
        index, end, k, v = WaveIndex(config), config.sink_tokens, data.k, data.v
        blocks, spans = [], []
        while (span := next_growth(k.shape[1], end, config)) is not None:
            rows = slice(span.start, end := span.stop)
            segment, places = cluster_segment(k[:, rows], v[:, rows], config)
            index.append(segment)
            order = places.long()[:, :, None].expand(-1, -1, k.shape[2])
            stored = torch.cat([t[:, rows].gather(1, order) for t in (k, v)], dim=2)
            blocks.append(stored.view(torch.uint8))
            starts = segment.starts.long().numpy() * blocks[-1].shape[2]
            heads = np.arange(len(starts))[:, None] * blocks[-1][0].numel()
            spans.append((starts[:, :-1] + heads, np.diff(starts)))
        first = torch.arange(min(config.sink_tokens, end))
        keep = torch.cat((first, torch.arange(end, k.shape[1])))
        steady = k[:, keep].contiguous(), v[:, keep].contiguous()
        recorder = Recorder(list(index.segments), steady, config)
        lengths = np.concatenate([lengths.ravel() for _, lengths in spans])
        return cls(index, steady, recorder, blocks, spans, lengths)

    @property
    def token_bytes(self) -> int:
        return self.blocks[0].shape[2]

    def buffer(
        self, sources: list[BlockSource], prefetcher: Prefetcher, share: float
    ) -> WaveBuffer:
        """With a block cache of `share` percent of the store."""
        made = WaveBuffer(len(self.blocks[0]), self.token_bytes, prefetcher)
        for source, (offsets, lengths) in zip(sources, self.spans, strict=True):
            made.append(source, offsets, lengths)
        made.allocate(int(self.lengths.sum() * share / 100))
        return made


def _hits(
    options: BufferOptions, layer: _Layer, trace: Trace, progress: Progress
) -> Iterator[Result]:
    """One row for each size of the block cache; the whole trace, the empty beginning included."""
    for share in options.shares:
        progress(f"counting hits: a block cache of {share:g} %")
        row: Result = {"cache_percent": share}
        for policy in POLICIES:
            capacity = int(layer.lengths.sum() * share / 100)
            found = replay(trace, layer.lengths, capacity, layer.token_bytes, policy)
            row |= {"cache_bytes": found.cache_bytes, "slots": found.slots}
            row[policy] = {"hit_ratio": found.hit_ratio, "bytes_per_step": found.missed_bytes}
        yield row


def _timed(
    options: BufferOptions,
    layer: _Layer,
    queries: Tensor,
    trace: Trace,
    ahead: Trace,
    folder: Path,
    progress: Progress,
) -> Result:
    """Milliseconds of steps, with attention alone and with the rest of a layer."""
    found: Result = {}
    rest = _rest_of_a_layer(queries)
    # The very first step on a machine compiles.
    layer.index.answer(queries[0], layer.steady)
    work: dict[str, Callable[[], object]] = {"attention": lambda: None, "layer": rest}
    with _file(layer, folder, progress) as files:
        for name, other in work.items():
            steps = _Steps(layer, queries, trace, ahead, other)
            passes: dict[str, list[_Pass]] = {"ram": [], "file": [], "prefetch": []}
            for number in range(options.repeats):
                progress(f"timing steps, {name}: {number + 1}/{options.repeats}")
                memory: list[BlockSource] = [RamSource(block) for block in layer.blocks]
                passes["ram"].append(steps.run(memory, 0, options.share))
                for kind, readers in (("file", 0), ("prefetch", options.readers)):
                    for file in files:
                        file.forget()
                    passes[kind].append(steps.run(list(files), readers, options.share))
            found[name] = {kind: _summary(runs) for kind, runs in passes.items()}
            ram = found[name]["ram"]["ms"]
            for kind in ("file", "prefetch"):
                found[name][f"{kind}_over_ram"] = found[name][kind]["ms"] / ram
    return found


@dataclass(frozen=True, slots=True)
class _Pass:
    """Seconds of each step, seconds of its fetch, and what the buffer counted."""

    steps: list[float]
    waits: list[float]
    counts: BufferStatistics
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class _Steps:
    layer: _Layer
    queries: Tensor
    trace: Trace
    ahead: Trace
    other: Callable[[], object]
    """What else a step computes."""

    def run(self, sources: list[BlockSource], readers: int, share: float) -> _Pass:
        """All steps once, from an empty block cache."""
        prefetcher = Prefetcher(readers)
        buffer = self.layer.buffer(sources, prefetcher, share)
        steps, waits, before = [], [], _disk_bytes()
        try:
            for number, keys in enumerate(self.trace):
                began = time.perf_counter()
                with buffer.fetch(keys):
                    waits.append(time.perf_counter() - began)
                    if readers and number + 1 < len(self.trace):
                        buffer.prefetch(self.ahead[number + 1])
                    self.layer.index.answer(self.queries[number], self.layer.steady)
                self.other()
                steps.append(time.perf_counter() - began)
            return _Pass(steps, waits, buffer.statistics(), _disk_bytes() - before)
        finally:
            buffer.close()
            prefetcher.close()


def _summary(runs: list[_Pass]) -> Result:
    """Medians over passes of medians over steps; the first step, which finds nothing, apart."""

    def ms(of: Callable[[_Pass], float]) -> float:
        return statistics.median(of(one) for one in runs) * 1e3

    counts, steps = runs[-1].counts, len(runs[-1].steps)
    hits, late, misses = (int(n.sum()) for n in (counts.hits, counts.late, counts.misses))
    return {
        "ms": ms(lambda one: statistics.median(one.steps[1:])),
        "mean_ms": ms(lambda one: statistics.fmean(one.steps[1:])),
        "fetch_ms": ms(lambda one: statistics.median(one.waits[1:])),
        "first_ms": ms(lambda one: one.steps[0]),
        "hit_ratio": hits / max(1, hits + late + misses),
        "late": late / steps,
        "missed": misses / steps,
        "foreseen": counts.foreseen / max(1, counts.predicted),
        "bytes_fetched": counts.bytes_fetched / steps,
        "bytes_ahead": counts.bytes_ahead / steps,
        "bytes_of_disk": runs[-1].disk_bytes / steps,
    }


def _rest_of_a_layer(queries: Tensor) -> Callable[[], object]:
    """The matrix products of a decoder layer around attention, for one token."""
    hidden = queries.shape[1] * queries.shape[2]
    weights = torch.full((12 * hidden, hidden), 1e-3, dtype=torch.bfloat16)
    token = torch.ones(1, hidden, dtype=torch.bfloat16)
    return lambda: torch.nn.functional.linear(token, weights)


@contextmanager
def _file(layer: _Layer, folder: Path, progress: Progress) -> Iterator[list[FileSource]]:
    """The blocks of all segments in one file that has no name any more: nothing is left behind."""
    progress(f"writing {layer.lengths.sum() / 2**20:,.0f} MiB to {folder}")
    with ExitStack() as stack:
        sources, start = [], 0
        try:
            with tempfile.TemporaryDirectory(prefix="retrolocal-bench-", dir=folder) as made:
                path = Path(made) / "blocks"
                _write(layer.blocks, path)
                for block in layer.blocks:
                    source = FileSource(path, start, block.numel())
                    sources.append(stack.enter_context(closing(source)))
                    start += block.numel()
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot be written ({error.strerror}); give --folder another"
            ) from None
        yield sources


def _write(blocks: list[Tensor], path: Path) -> None:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block.numpy().data)
        file.flush()
        # Bytes that are not on the disk yet cannot leave the page cache.
        os.fsync(file.fileno())


def _require_disk(folder: Path, bytes: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StoreError(
            f"{folder}: {error.strerror}; give --folder a folder that exists"
        ) from None
    if free < ROOM * bytes:
        needed, there = told_apart(bytes, free)
        raise StoreError(
            f"{folder}: {needed} are to be written and {there} are free; "
            "give --folder another disk or fewer --tokens"
        )


def _disk_bytes() -> int:
    """Bytes that this process has read from disks; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text("ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    return int(counts.get("read_bytes", 0))


def _data(options: BufferOptions, progress: Progress) -> AttentionData:
    data = None
    if options.data is None:
        require_clustered(options.tokens)
    else:
        progress(f"reading {options.data}")
        data = first_of(options, read_data(options.data))
        data = AttentionData(*(t.bfloat16() for t in (data.q, data.k, data.v)))
        if len(data.q) < 2:
            raise DataError(f"{options.data}: has queries of 1 step; at least 2 are needed")
    shape = data.k.shape if data else (options.kv_heads, options.tokens, options.head_dim)
    hidden = (data.q.shape[1] if data else options.q_heads) * shape[2]
    needed = MemoryEstimate(
        weights=24 * hidden * hidden,
        # Keys and values as they came, in the index's segments, as blocks, and in slots.
        cache=int(4 * math.prod(shape) * (3.2 + options.share / 100)),
        workspace=shape[1] * (shape[2] * 24 + 8 * hidden // shape[2]),
    )
    require(needed, model="the benchmark", tokens=shape[1])
    if data is not None:
        return data
    progress("making structured keys and values")
    return structured_answer(
        tokens=options.tokens,
        q_heads=options.q_heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        steps=options.steps,
        gain=options.gain,
        seed=options.seed,
    )
