"""`retrolocal bench attention`: one decode step of one layer, dense against paper against wave.

With `--prompt` a whole text is read in place of that: see `prompt`.

The dense baseline is the best that PyTorch has on the device: grouped scaled_dot_product_attention
in the stored dtype, or in float32 where that is faster. Beside it, as `dense_compiled_ms`, stands
what `--cache dense` does here where that is another way: 16 bits on a CPU, compiled. Speed and
error of a scheme come from the same run with the same settings, the defaults of the program. Every
timed step has another query than the one before, and the schemes take turns, so that none finds its
data in a cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import SessionConfig, WaveConfig
from ..device import choose_device
from ..device_graph import capture
from ..errors import DataError
from ..fidelity import Measured, Steady, build_index, compare, require_clustered
from ..kernels.attention import full_attention, full_attention_reference
from ..kernels.compiled import one_token
from ..measurement import Progress
from ..memory import MemoryEstimate, require
from ..wave.index import WaveIndex
from .device_buffer import pinned
from .options import AttentionOptions, BufferOptions
from .synthetic import AttentionData, structured_data

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def run(options: AttentionOptions, progress: Progress) -> dict[str, Any]:
    """Raises DataError for a file that does not fit, UsageError for too few tokens,
    MemoryLimitError for more than there is."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.prompt:
        from . import prompt

        return prompt.run(options, progress)
    device = choose_device(SessionConfig(device=options.device))
    return measure(_data(options, progress).to(device), options, device, progress)


def measure(
    data: AttentionData, options: AttentionOptions, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """Of data on the device."""
    k, v = data.k, data.v
    paper = WaveConfig(scheme="paper", index_type="bf16", store_type="bf16", outlier_fraction=0.0)
    ours = wave_config(options)
    schemes: dict[str, tuple[WaveIndex, Steady]] = {}
    build_ms = {}
    for name, config in (("paper", paper), ("wave", ours)):
        progress(f"building the index: {name}")
        began = time.perf_counter()
        stored = DTYPES.get(options.store_type if name == "wave" else options.dtype, k.dtype)
        schemes[name] = build_index(k.to(stored), v.to(stored), config)
        _wait(device)
        build_ms[name] = (time.perf_counter() - began) * 1e3
    progress("measuring speed")
    if device.type == "cuda":
        schemes["wave_ram"] = pinned(schemes["wave"][0], device), schemes["wave"][1]
    times = _times(data, k, v, schemes, options.repeats)
    measured: dict[str, Measured] = {}
    for (name, config), (index, steady) in zip(
        (("paper", paper), ("wave", ours)), schemes.values(), strict=False
    ):
        progress(f"measuring errors: {name}")
        measured[name] = compare(data.q, k, v, config, index=index, steady=steady)
    dense_ms = min(times[name] for name in times if name.startswith("dense"))
    compiled_ms = times.get("compiled dense")
    wave = schemes["wave"][0]
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "store_type": options.store_type,
        "tokens": k.shape[1],
        "q_heads": data.q.shape[1],
        "kv_heads": k.shape[0],
        "head_dim": k.shape[2],
        "steps": data.q.shape[0],
        "dense_ms": dense_ms,
        "dense_f32_ms": times.get("dense float32"),
        "dense_compiled_ms": compiled_ms,
        "paper": {"ms": times["paper"], **_errors(measured["paper"])},
        "wave": {
            "ms": times["wave"],
            **_errors(measured["wave"]),
            "mass_estimated": float(1 - measured["wave"].mass_exact.mean()),
            "mass_estimated_believed": float(measured["wave"].mass_estimated.mean()),
            "retrieved_tokens": float(measured["wave"].retrieved_tokens.mean()),
        },
        **({"wave_ram": {"ms": times["wave_ram"]}} if "wave_ram" in times else {}),
        "speedup": dense_ms / times["wave"],
        "speedup_compiled": None if compiled_ms is None else compiled_ms / times["wave"],
        "error_ratio": float(
            measured["wave"].relative_error.median() / measured["paper"].relative_error.median()
        ),
        "build_ms": build_ms["wave"],
        "index_bytes": wave.bytes,
        "store_bytes_per_token": wave.store_bytes / wave.segments.totals.tokens,
        "settings": asdict(ours) | {"gain": options.gain if options.data is None else None},
    }


def wave_config(options: AttentionOptions) -> WaveConfig:
    """Keys and values in float32 are stored as they come."""
    return WaveConfig(
        budget=options.budget,
        index_type=options.index_type,
        store_type="bf16" if options.store_type == "f32" else options.store_type,
    )


def _errors(measured: Measured) -> dict[str, float]:
    errors = measured.relative_error.flatten()
    return {
        "bytes": float(measured.bytes.mean()),
        "relative_error": float(errors.median()),
        "relative_error_p95": float(errors.quantile(0.95)),
        "mass_exact": float(measured.mass_exact.mean()),
    }


def _times(
    data: AttentionData,
    k: Tensor,
    v: Tensor,
    schemes: dict[str, tuple[WaveIndex, Steady]],
    repeats: int,
) -> dict[str, float]:
    """Median milliseconds of a step, `repeats` times over all steps, the schemes in turn."""
    queries = data.q.to(k.dtype)
    scale = k.shape[2] ** -0.5

    def dense(
        attention: Callable[..., object], keys: Tensor, values: Tensor
    ) -> Callable[[Tensor], object]:
        return lambda q: attention(q[:, None].to(keys.dtype), keys, values, scale=scale)

    def through(index: WaveIndex, steady: Steady) -> Callable[[Tensor], object]:
        return lambda q: index.answer(q, steady)

    steps = {"dense": dense(full_attention_reference, k, v)}
    on_gpu = k.device.type == "cuda"
    if one_token(queries[0][:, None]):
        steps["compiled dense"] = dense(full_attention, k, v)
    if not on_gpu and k.dtype != torch.float32 and 2 * k.numel() * 4 <= FLOAT32_LIMIT:
        steps["dense float32"] = dense(full_attention_reference, k.float(), v.float())
    steps |= {name: through(*scheme) for name, scheme in schemes.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    if on_gpu:
        for step in steps.values():
            # What steps share is then as large as it will be: a graph keeps its addresses.
            step(queries[0])
        steps = {name: _captured(step, queries[0]) for name, step in steps.items()}
    for step in steps.values():
        step(queries[0])
    for _ in range(repeats):
        for query in queries:
            for name, step in steps.items():
                _wait(k.device)
                began = time.perf_counter()
                step(query)
                _wait(k.device)
                taken[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def _captured(step: Callable[[Tensor], object], query: Tensor) -> Callable[[Tensor], object]:
    """The step as a CUDA graph: what it takes is then not what its launches take."""
    own = query.clone()
    replay = capture(lambda: step(own))

    def run(query: Tensor) -> None:
        own.copy_(query)
        replay()

    return run


def device_name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


FLOAT32_LIMIT = 2 << 30
"""Bytes up to which keys and values are also kept in float32, as a second dense baseline."""


def _data(options: AttentionOptions, progress: Progress) -> AttentionData:
    dtype = DTYPES[options.dtype]
    if options.data is not None:
        progress(f"reading {options.data}")
        data = first_of(options, read_data(options.data))
        return AttentionData(data.q.to(dtype), data.k.to(dtype), data.v.to(dtype))
    require_clustered(options.tokens)
    per_token = 2 * options.kv_heads * options.head_dim
    needed = MemoryEstimate(
        weights=0,
        cache=2 * options.tokens * per_token * dtype.itemsize,
        workspace=options.tokens * (options.head_dim * 24 + 8 * options.q_heads),
    )
    require(needed, model="the benchmark", tokens=options.tokens)
    progress("making structured keys and values")
    return structured_data(
        tokens=options.tokens,
        q_heads=options.q_heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        steps=options.steps,
        gain=options.gain,
        seed=options.seed,
        dtype=dtype,
    )


def first_of(options: AttentionOptions | BufferOptions, data: AttentionData) -> AttentionData:
    """As much of recorded data as was asked for. Raises UsageError where that is too little."""
    tokens, steps = options.tokens, options.steps
    have = data.k.shape[1]
    require_clustered(min(tokens, have), None if tokens <= have else str(options.data))
    return AttentionData(data.q[:steps], data.k[:, :tokens], data.v[:, :tokens])


def read_data(file: Path) -> AttentionData:
    """A safetensors file with q [S, Hq, D], k and v [Hkv, N, D], keys after RoPE.

    Raises DataError naming what is wrong, and where a key or value is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a readable safetensors file ({error})") from None
    missing = [name for name in ("q", "k", "v") if name not in tensors]
    if missing:
        raise DataError(
            f"{file}: has no tensor {missing[0]!r}; q [S, Hq, D], k and v [Hkv, N, D] are needed"
        )
    q, k, v = (tensors[name] for name in ("q", "k", "v"))
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    fits = q.ndim == k.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2]
    if not fits or 0 in (*q.shape, *k.shape) or q.shape[1] % k.shape[0]:
        raise DataError(
            f"{file}: {shapes}; needed are q [S, Hq, D], k and v [Hkv, N, D], Hq a multiple of Hkv"
        )
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not tensor.is_floating_point():
            raise DataError(f"{file}: {name} is {tensor.dtype}; floating point is needed")
        wrong = (~torch.isfinite(tensor)).nonzero()
        if len(wrong):
            first, second, _ = wrong[0].tolist()
            where = (
                f"step {first}, head {second}"
                if name == "q"
                else f"head {first}, position {second}"
            )
            raise DataError(f"{file}: {name} is not finite at {where}")
    return AttentionData(q, k, v)
