"""What a model and a context of a given length need, against what there is, and what goes where.

Pure arithmetic on the configuration and on figures of psutil and the control group; it is asked
before anything large is allocated. Clustered keys and values that do not fit into memory may lie
in a file; everything else has to fit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from .amounts import size_text, told_apart
from .config import WaveConfig
from .errors import ContextError, MemoryLimitError
from .heap import give_back
from .kernels.codecs import CODED, Codec
from .kernels.compiled import compiled, to_compile
from .models.config import ModelConfig
from .paths import disk_free

GIB = 1 << 30
LEAST_CACHE = 0.02
"""Share of the clustered keys and values that a block cache holds at least."""
IN_PLACE = 7 / 8
"""Share of the memory left that keys and values may grow to before the next go to a file."""
COMPILER_BYTES = 140_000_000
"""What compiled kernels bring with them: numba, LLVM, and code that was compiled before."""
COMPILING_BYTES = 300_000_000
"""What compiling them leaves in the process that does it."""
HOLES = 120_000_000
"""Chunk after chunk leaves the heap with holes, where what is in use for a moment was before: as
large in the end, but no larger than about this."""
WIDENED_BYTES = 64 << 20
"""Of rows, matrices and products in float32, at most (`kernels/widened.py`) ..."""
WIDENED_ROWS = 2048
"""... and so many rows."""
TOLD_BYTES = 80
"""Of a token of a text, while the passages that an answer was read from are looked for."""
INDEX_BYTES = {"int8": 1, "bf16": 2, "f32": 4}
"""Of an element of the wave index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a run."""

    weights: int
    cache: int
    """Keys and values of the whole context, with the wave index where there is one."""
    stored: int = 0
    """Of the cache, the clustered keys and values, which may lie in a file."""
    index: int = 0
    """Of the cache, the wave index."""
    workspace: int
    """What is in use for a moment: while a chunk is read, or while an answer is looked for."""
    loading: int = 0
    """Beside the weights while they are loaded, before there is a cache."""

    @property
    def total(self) -> int:
        """At the peak of reading, or of loading if that takes more."""
        return self.weights + max(self.cache + self.workspace, self.loading)

    @property
    def in_memory(self) -> int:
        """What cannot lie in a file; a block cache comes on top."""
        return self.total - self.stored

    @property
    def least(self) -> int:
        """With the smallest block cache."""
        return self.in_memory + int(LEAST_CACHE * self.stored)


def estimate(
    config: ModelConfig,
    *,
    weight_bytes: int,
    element_bytes: int,
    tokens: int,
    chunk_tokens: int,
    wave: WaveConfig | None,
    loading: int = 0,
) -> MemoryEstimate:
    """`weight_bytes` in the dtype they will have; `wave` is None for dense caches."""
    row_bytes = 2 * config.head_dim * element_bytes
    stored_bytes = row_bytes
    if wave is not None and wave.store_type in CODED:
        stored_bytes = Codec(CODED[wave.store_type]).token_bytes(config.head_dim)
    cache = stored = 0
    index = 0.0
    for layer in config.layers:
        held = tokens if layer.window is None else min(tokens, layer.window)
        if layer.window is not None or wave is None:
            cache += held * config.kv_heads * row_bytes
        else:
            stored += held * config.kv_heads * stored_bytes
            clusters = (1 + 1 / wave.group_clusters) / wave.cluster_tokens
            row = 2 * config.head_dim * INDEX_BYTES[wave.index_type] + 16
            # And the place of every token in its segment, to go back.
            index += held * config.kv_heads * (clusters * row + 4)
    chunk = chunk_bytes(
        config, tokens=tokens, chunk_tokens=chunk_tokens, element_bytes=element_bytes, wave=wave
    )
    moment = max(chunk, answer_bytes(config, tokens=tokens, wave=wave))
    later = max(0, tokens - chunk_tokens) / max(1, tokens)
    return MemoryEstimate(
        weights=weight_bytes,
        cache=cache + stored + int(index),
        stored=stored,
        index=int(index),
        loading=loading,
        workspace=moment + int(later * min(moment, HOLES)),
    )


def chunk_bytes(
    config: ModelConfig,
    *,
    tokens: int,
    chunk_tokens: int,
    element_bytes: int,
    wave: WaveConfig | None,
) -> int:
    """Bytes at the peak of reading a chunk of a text, beside weights and caches.

    The activations of one layer, of 16 bits what a CPU may widen of them and of the layer's
    matrices, a segment that is being clustered, and the keys and values of the chunk as they came,
    where the store rounds them, in case its reading is interrupted. A segment is complete with the
    chunk behind it where both are as long, and that may be a short one. Beyond it the length of the
    text is no part of it: exact attention looks at segments in turn.
    """
    inner = config.intermediate_size
    if config.experts is not None:
        chosen = config.experts.per_token
        inner = max(inner, chosen * (config.experts.intermediate_size + config.hidden_size))
    projected = (config.heads + 2 * config.kv_heads) * config.head_dim
    per_token = 3 * config.hidden_size + 3 * max(config.hidden_size + inner, projected)
    taken = min(tokens, chunk_tokens) * per_token * element_bytes
    complete = 0 if wave is None else wave.sink_tokens + wave.segment_tokens + wave.window_tokens
    if wave is not None and tokens >= complete:
        before = (complete - 1) // chunk_tokens * chunk_tokens
        beside, originals = min(chunk_tokens, tokens - before), 0
        if wave.store_type in CODED:
            whole = sum(layer.window is None for layer in config.layers)
            originals = whole * config.kv_heads * 2 * config.head_dim * element_bytes
        clustering = clustering_bytes(config, wave.segment_tokens)
        taken = max(taken, beside * (per_token * element_bytes + originals) + clustering)
    rows = min(tokens, chunk_tokens, WIDENED_ROWS)
    wide = rows * (config.hidden_size + inner) + config.hidden_size * inner
    return taken + min(WIDENED_BYTES, 4 * wide) * (element_bytes == 2) + config.vocab_size * 8


def clustering_bytes(config: ModelConfig, tokens: int) -> int:
    """Bytes in use while a segment of so many tokens of one layer is being clustered."""
    return tokens * config.kv_heads * config.head_dim * 16


def answer_bytes(config: ModelConfig, *, tokens: int, wave: WaveConfig | None) -> int:
    """Bytes at the peak of an answer, beside weights and caches.

    While what it was read from is found: of each token its share of the attention and its place in
    a document; of one KV head the keys of the index in float32, twice while they are put together.
    Or while the rest of a text, that was too short for a segment, is clustered.
    """
    if wave is None:
        return tokens * TOLD_BYTES
    rest = max(0, tokens - wave.sink_tokens - wave.window_tokens) % wave.segment_tokens
    clusters = tokens // wave.cluster_tokens
    return max(
        tokens * TOLD_BYTES + clusters * config.head_dim * 8,
        clustering_bytes(config, rest) if rest >= wave.growth_tokens else 0,
    )


def available_bytes() -> int:
    """Bytes that can be used without swapping: free memory, or less where a control group says."""
    free: int = psutil.virtual_memory().available
    limits = [_cgroup_left(*paths) for paths in _CGROUP_FILES]
    return min([free, *(limit for limit in limits if limit is not None)])


def resident_bytes() -> int:
    """Bytes of memory that this process has now."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def program_bytes(cache: str) -> int:
    """Bytes that this process, once it gave back what is free, has when it computes on a CPU."""
    later = COMPILER_BYTES if compiled() and "numba" not in sys.modules else 0
    if to_compile(cache):
        later += COMPILING_BYTES
    give_back()
    return resident_bytes() + later


@dataclass(frozen=True, slots=True)
class Placement:
    """Where clustered keys and values go."""

    ram: int
    """Bytes that stay in memory."""
    cache: int
    """Bytes of block caches for what does not."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a run may use in all, itself and all that it needs included."""

    bytes: int
    form: str
    """`{} are free`, with an amount in its place."""
    told: int | None = None
    """That amount, where it is not all of the bytes."""

    @property
    def words(self) -> str:
        """`4.0 GiB are free`."""
        return self.form.format(size_text(self._told))

    def beside(self, *amounts: int, digits: int = 1) -> tuple[str, ...]:
        """These amounts, and the words last, as they are compared in one message."""
        *texts, own = told_apart(*amounts, self._told, digits=digits)
        return (*texts, self.form.format(own))

    @property
    def _told(self) -> int:
        return self.bytes if self.told is None else self.told


def limit(ram: int, used: int) -> Limit:
    """`--ram` (0: not given) or what the machine has free, whichever is less.

    `used` bytes this process has already; they count.
    """
    free = available_bytes() + used
    if ram and ram <= free:
        return Limit(ram, "--ram is {}")
    return Limit(free, "{} are free", free - used)


def place(needed: MemoryEstimate, limit: Limit, used: int) -> Placement | None:
    """Where keys and values go under a limit, of which `used` bytes are taken; None: nowhere."""
    left = limit.bytes - used - needed.in_memory
    if needed.stored <= left:
        ram = max(needed.stored, int(IN_PLACE * left))
        return Placement(ram, left - ram)
    if limit.bytes - used >= needed.least:
        return Placement(0, min(left, needed.stored))
    return None


def placed(
    needed: MemoryEstimate, limit: Limit, used: int, *, model: str, tokens: int
) -> Placement:
    """`place`; raises MemoryLimitError with both figures when it does not fit at all."""
    found = place(needed, limit, used)
    if found is not None:
        return found
    file = needed.stored > 0
    hint = "give more --ram" if limit.form.startswith("--ram") else "close other programs"
    whole, words = limit.beside(used + (needed.least if file else needed.total))
    raise MemoryLimitError(
        f"{model} with {tokens:,} tokens needs about {whole}"
        + (" even with its keys and values in a file" if file else "")
        + f" (program {size_text(used)}, weights {size_text(needed.weights)}, "
        f"cache {size_text(needed.cache - needed.stored)}, "
        + (f"block cache {size_text(needed.least - needed.in_memory)}, " if file else "")
        + f"workspace {size_text(needed.workspace)}) and {words}: {hint}"
    )


def require_file(needed: MemoryEstimate, found: Placement, folder: Path, *, tokens: int) -> None:
    """Raises MemoryLimitError when what is not in memory does not fit into `folder` either."""
    bytes = 0 if found.ram >= needed.stored else needed.stored
    free = disk_free(folder)
    if bytes > free:
        whole, there = told_apart(bytes, free)
        raise MemoryLimitError(
            f"{tokens:,} tokens have {whole} of keys and values, more than fit into "
            f"memory, and {folder} has {there} free: free the disk, give a shorter "
            "text or --store-type int4"
        )


def machine_bytes() -> int:
    """Bytes of memory that this machine has, or less where a control group says."""
    total: int = psutil.virtual_memory().total
    limits = [_cgroup_number(limit) for limit, _ in _CGROUP_FILES]
    return min([total, *(limit for limit in limits if limit is not None)])


def require(needed: MemoryEstimate, *, model: str, tokens: int) -> None:
    """Raises MemoryLimitError with both figures when it does not fit into memory as a whole."""
    free = available_bytes()
    if needed.total <= free:
        return
    hint = (
        "close other programs or take a smaller model"
        if needed.weights > free
        else "give a shorter text or a model with fewer KV heads"
    )
    whole, there = told_apart(needed.total, free)
    raise MemoryLimitError(
        f"{model} with {tokens:,} tokens needs about {whole} "
        f"(weights {size_text(needed.weights)}, cache {size_text(needed.cache)}, "
        f"workspace {size_text(needed.workspace)}) and {there} are free: {hint}"
    )


def _cgroup_files(
    memberships: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> tuple[tuple[Path, Path], ...]:
    """Limit and usage of this process's group and those above it, versions 2 and 1."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        lines = []
    found = []
    for line in (*lines, "0::/", "0:memory:/"):
        _, kinds, path = [*line.split(":", 2), "", ""][:3]
        if kinds not in ("", "memory"):
            continue
        top = root / "memory" if kinds else root
        names = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                found.append((folder / f"memory.{names[0]}", folder / f"memory.{names[1]}"))
    return tuple(dict.fromkeys(found))


_CGROUP_FILES = _cgroup_files()


def _cgroup_left(limit_file: Path, usage_file: Path) -> int | None:
    limit, usage = _cgroup_number(limit_file), _cgroup_number(usage_file)
    if limit is None or usage is None:
        return None
    return max(0, limit - max(0, usage - _given_back(usage_file.parent)))


def _cgroup_number(file: Path) -> int | None:
    """What a file of the control group says, None without one and for `max`."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _given_back(group: Path) -> int:
    """Bytes of a group's usage that the system takes back when they are needed: read files."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    found = dict(line.split(" ", 1) for line in lines if " " in line)
    size = found.get("total_inactive_file", found.get("inactive_file", "0"))
    return int(size) if size.isdecimal() else 0


def context_tokens(ctx_size: int, positions: int, *, model: str) -> int:
    """Tokens that a context of `--ctx-size` (0: all) may have; raises ContextError for too many."""
    if ctx_size > positions:
        raise ContextError(
            f"--ctx-size is {ctx_size:,} and {model} has positions for {positions:,}: "
            "give at most that many"
        )
    return ctx_size or positions


def require_positions(tokens: int, limit: int, positions: int, *, model: str) -> None:
    """Raises ContextError for a prompt of more tokens than `limit`, of at most `positions`."""
    if tokens <= limit:
        return
    what = f"the prompt, documents included, needs {tokens:,} tokens"
    if limit < positions:
        raise ContextError(f"{what} and --ctx-size is {limit:,}: raise it")
    raise ContextError(
        f"{what} and {model} has positions for {limit:,}: "
        "give a shorter text or a model with a longer context"
    )
