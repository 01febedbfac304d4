"""`retrolocal bench attention --prompt`: one layer reads a whole text, dense against wave.

Both caches get the same pieces of one segment in turn, so that they share the machine's moods. The
error is that of the wave cache's outputs at positions of the second half, against dense attention
in float64; beside it stands what the paper's scheme shows when it decodes: the last positions'
queries as single steps over the whole context.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..cache import DenseCache
from ..config import WaveConfig
from ..fidelity import build_index, compare, exact_attention, require_clustered
from ..measurement import Progress
from ..wave.cache import WaveCache
from ..wave.lengths import Lengths
from .attention import wave_config
from .options import AttentionOptions
from .synthetic import AttentionData, structured_prompt

SAMPLES = 64
"""Positions whose error is measured."""


def run(options: AttentionOptions, progress: Progress) -> dict[str, Any]:
    """Raises UsageError for too few tokens."""
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    require_clustered(options.tokens)
    progress("making structured queries, keys and values")
    data = structured_prompt(
        tokens=options.tokens,
        q_heads=options.q_heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        gain=options.gain,
        seed=options.seed,
        dtype=dtype,
    )
    config = wave_config(options)
    sampled = torch.tensor(sorted({options.tokens - 1 - n for n in _spread(options.tokens // 2)}))
    caches: dict[str, DenseCache | WaveCache] = {
        "dense": DenseCache(),
        "wave": WaveCache(config, lengths=Lengths(prefill=lambda: 0)),
    }
    _compile(config, data)
    seconds = dict.fromkeys(caches, 0.0)
    out = torch.empty(len(sampled), options.q_heads, options.head_dim)
    for first in range(0, options.tokens, config.segment_tokens):
        rows = slice(first, min(first + config.segment_tokens, options.tokens))
        positions = torch.arange(rows.start, rows.stop)
        q, k, v = data.q[rows].transpose(0, 1), data.k[:, rows], data.v[:, rows]
        for name, cache in caches.items():
            began = time.perf_counter()
            answer = cache.attend(q, k, v, positions)
            seconds[name] += time.perf_counter() - began
        inside = (sampled >= rows.start) & (sampled < rows.stop)
        out[inside] = answer[:, sampled[inside] - rows.start].float().transpose(0, 1)
        progress(
            f"{rows.stop:,} of {options.tokens:,} tokens: dense {seconds['dense']:.1f} s, "
            f"wave {seconds['wave']:.1f} s"
        )
    errors = _errors(data, sampled, out)
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "tokens": options.tokens,
        "q_heads": options.q_heads,
        "kv_heads": options.kv_heads,
        "head_dim": options.head_dim,
        "dense_s": seconds["dense"],
        "wave_s": seconds["wave"],
        "speedup": seconds["dense"] / seconds["wave"],
        "relative_error": float(errors.median()),
        "relative_error_p95": float(errors.quantile(0.95)),
        "paper_decode": _paper(data, len(sampled)),
        "settings": asdict(config) | {"gain": options.gain},
    }


def _compile(config: WaveConfig, data: AttentionData) -> None:
    """Reads a little, so that no code is compiled while the clock runs."""
    size = min(1024, config.segment_tokens)
    cache = WaveCache(replace(config, segment_tokens=size), lengths=Lengths(prefill=lambda: 0))
    for first in range(0, min(4 * size, len(data.q)), size):
        rows = slice(first, min(first + size, len(data.q)))
        positions = torch.arange(rows.start, rows.stop)
        cache.attend(data.q[rows].transpose(0, 1), data.k[:, rows], data.v[:, rows], positions)


def _spread(length: int) -> range:
    """About SAMPLES numbers from 0 to below `length`."""
    return range(0, max(1, length), max(1, length // SAMPLES))


def _errors(data: AttentionData, sampled: Tensor, out: Tensor) -> Tensor:
    """Relative errors of out [S, Hq, D] at the sampled positions, flat."""
    found = []
    for position, answer in zip(sampled.tolist(), out.double(), strict=True):
        upto = slice(0, position + 1)
        truth, _ = exact_attention(data.q[position], data.k[:, upto], data.v[:, upto])
        found.append((answer - truth).norm(dim=1) / truth.norm(dim=1))
    return torch.cat(found)


def _paper(data: AttentionData, steps: int) -> dict[str, float]:
    config = WaveConfig(scheme="paper", index_type="bf16", store_type="bf16", outlier_fraction=0.0)
    index, steady = build_index(data.k, data.v, config)
    measured = compare(
        data.q[-steps:], data.k, data.v, config, index=index, steady=steady
    ).relative_error.flatten()
    return {
        "relative_error": float(measured.median()),
        "relative_error_p95": float(measured.quantile(0.95)),
    }
