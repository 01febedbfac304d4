"""From which length on the index pays: measured on the machine at hand, never guessed.

For one shape of attention, decode steps and blocks of a prompt are timed over contexts of growing
length, dense against wave, until wave is no slower. Keys are random and clusters regular: for
speed only their number and size matter. The result is kept in the user's cache directory, per
processor, number of threads, shape and settings.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from . import __version__
from .config import WaveConfig
from .device import device_name
from .device_graph import capture
from .kernels.attention import full_attention
from .kernels.codecs import Codec, encode_rows
from .kernels.compiled import compiled
from .kernels.segment import Level, Segment, SegmentTable
from .kernels.wave_attention import wave_attention
from .kernels.wave_prefill import wave_prefill
from .remembered import remember, remembered
from .wave.clustering import INDEX_DTYPES
from .wave.index import selection
from .wave.prefill import BLOCK_TOKENS, blocks
from .wave.zones import groups, outliers

LONGEST = 32
"""Segments up to which is looked; a machine on which wave does not pay by then stays dense."""
REPEATS = 7
FILE = "crossover.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What attention's speed depends on besides the length."""

    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """In segments; None: never within what was measured."""

    decode: int | None
    prefill: int | None


_known: dict[str, Crossover] = {}
"""A process keeps to one answer, also where nothing can be written down."""


def is_known(shape: Shape, config: WaveConfig) -> bool:
    """Whether `crossover` answers at once."""
    key = _key(shape, config)
    return key in _known or _remembered(key) is not None


def crossover(shape: Shape, config: WaveConfig) -> Crossover:
    """Measured now, or on an earlier day."""
    key = _key(shape, config)
    if key not in _known:
        _known[key] = _remembered(key) or _measured(key, shape, config)
    return _known[key]


def tokens_of(segments: int | None, config: WaveConfig) -> int:
    """Length of a context with so many segments; for None one that no context has."""
    if segments is None:
        return 1 << 62
    return config.sink_tokens + segments * config.segment_tokens + config.window_tokens


def _remembered(key: str) -> Crossover | None:
    found = remembered(FILE, {field.name for field in dataclasses.fields(Crossover)}).get(key)
    return None if found is None else Crossover(**found)


def _measured(key: str, shape: Shape, config: WaveConfig) -> Crossover:
    measured = Crossover(decode=_decode(shape, config), prefill=_prefill(shape, config))
    remember(FILE, key, asdict(measured))
    return measured


def _decode(shape: Shape, config: WaveConfig) -> int | None:
    # The whole of the budget: attention that needs less is faster still.
    rules = replace(selection(config), epsilon=0.0)
    scale = shape.head_dim**-0.5

    def race(k: Tensor, v: Tensor, table: SegmentTable) -> tuple[Callable[[], object], ...]:
        q = torch.randn(shape.q_heads, 1, shape.head_dim, device=k.device).to(k.dtype)
        steady = k[:, :WINDOW].contiguous(), v[:, :WINDOW].contiguous()

        works = (
            lambda: full_attention(q, k, v, scale=scale),
            lambda: wave_attention(q[:, 0], steady, table, rules, scale=scale),
        )
        # On a GPU a step is part of a captured graph: its launches cost nothing then.
        return tuple(map(capture, works)) if k.device.type == "cuda" else works

    return _first_won(shape, config, shape.kv_heads, race)


def _prefill(shape: Shape, config: WaveConfig) -> int | None:
    group, scale = shape.q_heads // shape.kv_heads, shape.head_dim**-0.5

    def race(k: Tensor, v: Tensor, table: SegmentTable) -> tuple[Callable[[], object], ...]:
        q = torch.randn(group, BLOCK_TOKENS, shape.head_dim, device=k.device).to(k.dtype)
        lse = torch.zeros(group, BLOCK_TOKENS, device=k.device)
        rules = blocks(config)
        return (
            lambda: full_attention(q, k, v, scale=scale),
            lambda: wave_prefill(q, lse, table, rules, scale=scale),
        )

    return _first_won(shape, config, 1, race)


WINDOW = 68
"""Tokens of a steady zone."""
Race = Callable[[Tensor, Tensor, SegmentTable], tuple[Callable[[], object], ...]]


def _first_won(shape: Shape, config: WaveConfig, kv_heads: int, race: Race) -> int | None:
    """The smallest number of segments, doubling, at which the second of two is no slower."""
    segments = 1
    while segments <= LONGEST:
        size = (kv_heads, segments * config.segment_tokens, shape.head_dim)
        k, v = (torch.randn(size, device=shape.device).to(shape.dtype) for _ in range(2))
        table = SegmentTable()
        for first in range(0, size[1], config.segment_tokens):
            rows = slice(first, first + config.segment_tokens)
            table.append(_regular(k[:, rows], v[:, rows], config))
        dense, wave = race(k, v, table)
        if _median(wave, dense, shape.device) <= 1.0:
            return segments
        segments *= 2
    return None


def _median(one: Callable[[], object], other: Callable[[], object], device: torch.device) -> float:
    """Time of `one` over that of `other`: ratio of medians, taken in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS + 1):
        for work, times in zip((one, other), taken, strict=True):
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                times.append(time.perf_counter() - began)
    return statistics.median(taken[0]) / statistics.median(taken[1])


def _regular(k: Tensor, v: Tensor, config: WaveConfig) -> Segment:
    """A segment whose clusters are runs of equal length; centroids are their first keys.

    k, v [H, N, D].
    """
    heads, tokens, dim = k.shape
    singles = outliers(tokens, config)
    grouped = max(1, -(-tokens // config.cluster_tokens) - singles)
    ends = torch.arange(1, grouped + 1) * (tokens - singles) // grouped
    starts = torch.cat((torch.zeros(1), ends, torch.arange(tokens - singles + 1, tokens + 1)))
    count = groups(grouped, config)
    offsets = torch.arange(count + 1) * grouped // count

    def level(rows: Tensor) -> Level:
        dtype = INDEX_DTYPES[config.index_type]
        (keys, scales), (sums, sum_scales) = (
            encode_rows(t[:, rows].float(), dtype) for t in (k, v)
        )
        return Level(
            centroids=keys,
            value_sums=sums,
            scales=torch.cat((scales, sum_scales), dim=-1).contiguous(),
            spreads=torch.full(keys.shape[:2], 0.1).bfloat16().to(k.device),
        )

    places = starts[:-1].long().clamp(max=tokens - 1).to(k.device)
    runs = starts.int().expand(heads, -1).contiguous().to(k.device)
    fine, codec = level(places), Codec.of(config.store_type, k.dtype)
    centres = torch.stack([fine.keys(head) for head in range(heads)])
    return Segment(
        mean_key=torch.zeros(heads, dim, device=k.device),
        fine=fine,
        coarse=level(places[offsets[:-1]]),
        starts=runs,
        group_offsets=offsets.int().expand(heads, -1).contiguous().to(k.device),
        singles=singles,
        codec=codec,
        blocks=codec.encode(k, v, runs, centres),
    )


def _key(shape: Shape, config: WaveConfig) -> str:
    parts = (
        f"retrolocal {__version__}",
        f"torch {torch.__version__}",
        f"{device_name(shape.device)}, {torch.get_num_threads()} threads, compiled {compiled()}",
        f"{shape.q_heads}/{shape.kv_heads} x {shape.head_dim} {shape.dtype}",
        json.dumps(asdict(config), sort_keys=True),
    )
    return "; ".join(parts)
