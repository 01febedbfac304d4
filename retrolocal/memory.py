"""What a model and a context of a given length need, against what the machine has free.

Pure arithmetic on the configuration and on figures of psutil and the control group; it is asked
before anything large is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from .config import WaveConfig
from .errors import MemoryLimitError
from .kernels.codecs import CODED, Codec
from .models.config import ModelConfig

GIB = 1 << 30
INDEX_BYTES = {"int8": 1, "bf16": 2, "f32": 4}
"""Of an element of the wave index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a run."""

    weights: int
    cache: int
    """Keys and values of the whole context, with the wave index where there is one."""
    workspace: int
    """Activations of one prefill chunk."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace


def estimate(
    config: ModelConfig,
    *,
    weight_bytes: int,
    element_bytes: int,
    tokens: int,
    chunk_tokens: int,
    wave: WaveConfig | None,
) -> MemoryEstimate:
    """`weight_bytes` in the dtype they will have; `wave` is None for dense caches."""
    row_bytes = 2 * config.head_dim * element_bytes
    stored_bytes, chunk = row_bytes, min(tokens, chunk_tokens)
    if wave is not None and wave.store_type in CODED:
        stored_bytes = Codec(CODED[wave.store_type]).token_bytes(config.head_dim)
    cache = originals = 0
    index = 0.0
    for layer in config.layers:
        held = tokens if layer.window is None else min(tokens, layer.window)
        if layer.window is not None or wave is None:
            cache += held * config.kv_heads * row_bytes
        else:
            cache += held * config.kv_heads * stored_bytes
            if stored_bytes != row_bytes:
                # Those of a chunk, in case its reading is interrupted.
                originals += chunk * config.kv_heads * row_bytes
            clusters = (1 + 1 / wave.group_clusters) / wave.cluster_tokens
            row = 2 * config.head_dim * INDEX_BYTES[wave.index_type] + 16
            # And the place of every token in its segment, to go back.
            index += held * config.kv_heads * (clusters * row + 4)
    per_token = (
        4 * config.hidden_size
        + 3 * config.intermediate_size
        + 3 * (config.heads + 2 * config.kv_heads) * config.head_dim
    )
    clustering = 0 if wave is None else wave.segment_tokens * config.kv_heads * config.head_dim * 16
    return MemoryEstimate(
        weights=weight_bytes,
        cache=cache + int(index),
        workspace=chunk * per_token * element_bytes
        + config.vocab_size * 8
        + clustering
        + originals,
    )


def available_bytes() -> int:
    """Bytes that can be used without swapping: free memory, or less where a control group says."""
    free: int = psutil.virtual_memory().available
    limits = [_cgroup_left(*paths) for paths in _CGROUP_FILES]
    return min([free, *(limit for limit in limits if limit is not None)])


def machine_bytes() -> int:
    """Bytes of memory that this machine has, or less where a control group says."""
    total: int = psutil.virtual_memory().total
    limits = [_cgroup_number(limit) for limit, _ in _CGROUP_FILES]
    return min([total, *(limit for limit in limits if limit is not None)])


def require(needed: MemoryEstimate, *, model: str, tokens: int) -> None:
    """Raises MemoryLimitError with both figures when it does not fit."""
    free = available_bytes()
    if needed.total <= free:
        return
    hint = (
        "close other programs or take a smaller model"
        if needed.weights > free
        else "give a shorter text or a model with fewer KV heads"
    )
    raise MemoryLimitError(
        f"{model} with {tokens:,} tokens needs about {needed.total / GIB:.1f} GiB "
        f"(weights {needed.weights / GIB:.1f}, cache {needed.cache / GIB:.1f}, "
        f"workspace {needed.workspace / GIB:.1f}) and {free / GIB:.1f} GiB are free: {hint}"
    )


_CGROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def _cgroup_left(limit_file: Path, usage_file: Path) -> int | None:
    limit, usage = _cgroup_number(limit_file), _cgroup_number(usage_file)
    return None if limit is None or usage is None else max(0, limit - usage)


def _cgroup_number(file: Path) -> int | None:
    """What a file of the control group says, None without one and for `max`."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
