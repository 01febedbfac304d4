"""How much of a GPU's bandwidth the scoring kernel of one level reaches, against a device copy.

Every cluster is scored, as in a step that descends into all groups. Several copies of the index
take turns, so that no cache of the GPU holds what comes next.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ..config import WaveConfig
from ..device import device_name
from ..device_graph import capture
from ..fidelity import build_index
from ..kernels.segment import SegmentTable, nbytes
from ..kernels.wave_attention import Selection
from ..measurement import Progress, Result
from .synthetic import AttentionData

COPIED = 1 << 30
"""Bytes of the device copy."""
REPEATS = 20
ONE_LEVEL = Selection(descend=1.0, tokens=0.01)


def measure(
    data: AttentionData,
    config: WaveConfig,
    device: torch.device,
    progress: Progress,
    *,
    copies: int = 8,
    copied: int = COPIED,
) -> Result:
    """Of the index over all keys; bytes are what the kernel reads of rows and writes of scores."""
    from ..kernels.wave_attention_triton import device_scratch, score_candidates

    progress("building the index")
    index, steady = build_index(data.k.to(device), data.v.to(device), config)
    query, scale = data.q[0].to(device), data.k.shape[2] ** -0.5
    count = torch.tensor([steady[0].shape[1]], dtype=torch.int32, device=device)
    tables = [_index_only(index.segments) for _ in range(copies)]
    for table in tables:
        device_scratch(query, table, ONE_LEVEL)
    # What the kernel starts from: the scores of mean keys, and that all groups are descended into.
    scratch = device_scratch(query, index.segments, ONE_LEVEL)
    scratch.step(query, steady, count, index.segments, ONE_LEVEL, scale=scale)

    def score() -> None:
        for table in tables:
            score_candidates(query, table, ONE_LEVEL, scale=scale)

    progress("timing the scoring kernel and a device copy")
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    scored = _seconds(score, device) / copies
    copying = _seconds(lambda: target.copy_(source), device)
    read, written = _traffic(index.segments, query.shape[0])
    return {
        "device": device_name(device),
        "tokens": data.k.shape[1],
        "clusters": index.segments.totals.clusters * data.k.shape[0],
        "ms": scored * 1e3,
        "bytes_read": read,
        "bytes_written": written,
        "gb_per_s": (read + written) / scored / 1e9,
        "copy_gb_per_s": 2 * copied / copying / 1e9,
        "share_of_copy": (read + written) / scored / (2 * copied / copying),
    }


def _index_only(segments: SegmentTable) -> SegmentTable:
    """A copy with memory of its own, without keys and values."""
    table = SegmentTable()
    for segment in segments:
        table.append(copy.deepcopy(replace(segment, blocks=segment.blocks.to("meta"))))
    return table


def _traffic(segments: SegmentTable, q_heads: int) -> tuple[int, int]:
    """Bytes of grouped clusters that are read, and of what is kept about them."""
    first = segments[0]
    level, heads = first.fine, first.heads
    grouped = sum(segment.grouped for segment in segments)
    row = nbytes(*(t[0, 0] for t in (level.centroids, level.scales, level.spreads))) + 4
    # A score and a log mass for each query; segment, number and size for each KV head.
    return heads * grouped * row, grouped * (q_heads * 2 * 4 + heads * 3 * 4)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one run, the median of several; a replay on a GPU."""
    gpu = device.type == "cuda"
    replay = capture(work) if gpu else work
    taken = []
    for _ in range(REPEATS if gpu else 1):
        _wait(device)
        began = time.perf_counter()
        replay()
        _wait(device)
        taken.append(time.perf_counter() - began)
    return max(statistics.median(taken), 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
