"""Builds every launch of a decode step and of clustering for GPUs that are not there.

A script, because kernels that were imported for the interpreter cannot be compiled any more. What
is launched is recorded, then compiled for each architecture; what each build takes is printed as
JSON lines. Arguments: a JSON object with dims, stores, dtypes, group (query heads per KV
head), further (whether `FURTHER` is launched too), architectures, and `all_kernels`, those of them
for which not only `CORE` is built.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from retrolocal.config import WaveConfig
from retrolocal.kernels import (
    kmeans_triton,
    slots_triton,
    wave_attention_triton,
    wave_prefill_triton,
)
from retrolocal.kernels.segment import SegmentTable, SlotMap
from retrolocal.kernels.wave_attention import Selection
from retrolocal.kernels.wave_prefill import Blocks
from retrolocal.wave.clustering import cluster_segment

CORE = ("steady_kernel", "exact_kernel")
"""The kernels that use the most of a multiprocessor."""
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


FURTHER = (
    Selection(descend=0.2, tokens=0.1, whole=True),
    Selection(descend=1.0, tokens=0.1),
    Selection(descend=1.0, tokens=1.0, clusters=0.02, second_order=False, estimated=0.2),
)
"""Selections with rules of their own: a fixed share (short texts: one level), and the paper's."""


def launches(
    dim: int, store: str, dtype: torch.dtype, group: int, *, wanted_further: bool
) -> list[Launch]:
    """What is launched for such a model, with its arguments."""
    recorded: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.append((self, args, kwargs))

    run, JITFunction.run = JITFunction.run, record
    try:
        k, v = torch.randn(2, 2, 200, dim).to(dtype)
        segments = SegmentTable()
        config = WaveConfig(index_type="int8", store_type=store, outlier_fraction=0.05)  # type: ignore[arg-type]
        segments.append(cluster_segment(k, v, config)[0])
        segments.slots = SlotMap(
            *(torch.zeros(2, 64, dtype=torch.int64) for _ in range(2)),
            torch.zeros(2, 3, dtype=torch.int64),
        )
        selection = Selection(descend=0.2, tokens=0.1, sure=0.1, epsilon=0.002, floor=8)
        q = torch.randn(2 * group, dim).to(dtype)
        for chosen in (selection, *(FURTHER if wanted_further else ())):
            wave_attention_triton.wave_attention_triton(q, (k, v), segments, chosen, scale=0.1)
        kmeans_triton.assign_triton(k.float(), k[:, :16].float())
        kmeans_triton.cluster_sums_triton(k.float(), torch.zeros(2, 200, dtype=torch.int64), 16)
        if store != "int4":
            wave_prefill_triton.wave_prefill_triton(
                torch.randn(2 * group, 128, dim).to(dtype),
                torch.zeros(2 * group, 128),
                segments,
                Blocks(tokens=128, descend=0.3, retrieved=0.1),
                scale=0.1,
            )
        slots_triton.copy_clusters_triton(*(torch.zeros(4, dtype=torch.int64) for _ in range(3)))
    finally:
        JITFunction.run = run
    return recorded


def source(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for number, name in enumerate(fn.arg_names):
        value = args[number] if number < len(args) else kwargs[name]
        divisible = True
        if fn.params[number].is_constexpr:
            signature[name], constants[name], divisible = "constexpr", value, False
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name], divisible = "fp32", False
        else:
            signature[name], divisible = "i32", value % 16 == 0
        if divisible:
            attributes[(number,)] = [["tt.divisibility", 16]]
    return ASTSource(fn, signature, constants, attributes)


def builds(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for dim in wanted["dims"]:
        for store in wanted["stores"]:
            for name in wanted["dtypes"]:
                launched = launches(
                    dim,
                    store,
                    getattr(torch, name),
                    wanted["group"],
                    wanted_further=wanted["further"],
                )
                for launch in launched:
                    kernel = launch[0].__name__.removeprefix("_")
                    for architecture in wanted["architectures"]:
                        if kernel in CORE or architecture in wanted["all_kernels"]:
                            shape = {"dim": dim, "store": store, "dtype": name, "kernel": kernel}
                            yield shape | build(launch, architecture)


def build(launch: Launch, architecture: int) -> dict[str, Any]:
    target = GPUTarget("cuda", architecture, 32)
    options = {name: value for name, value in launch[2].items() if name == "num_warps"}
    compiled = triton.compile(source(*launch), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    return {
        "architecture": architecture,
        "registers": found["REG"],
        "spilled": found["STACK"],
        "shared": compiled.metadata.shared,
        "bytewise": len(re.findall(r"ld\.global[.\w]*\.b8\b", compiled.asm["ptx"])),
    }


if __name__ == "__main__":
    for line in builds(json.loads(sys.argv[1])):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
