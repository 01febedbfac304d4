"""The options of the benchmarks as frozen values, checked where they enter. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from ..config import CacheKind, Device, SessionConfig, WaveConfig, require_model
from ..errors import UsageError
from ..measurement import require_seed

MAX_COUNT = (1 << 31) - 1
"""Of tokens, heads, repetitions: more is a slip of the keyboard."""
MAX_READERS = 256
"""Threads that wait for a disk; no disk takes more questions at once."""

QWEN = "Qwen2.5-7B"
LEAST_OF_ALL = 16_384
"""Tokens of `bench all` at least: an eighth of them is still clustered."""

TensorType = Literal["bf16", "f32"]
Stored = Literal["bf16", "f32", "int8", "int4"]
IndexType = Literal["int8", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """`retrolocal bench attention`: decode steps of attention over one layer's keys and values."""

    tokens: int = 131_072
    q_heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    dtype: TensorType = "bf16"
    """Of queries, and of the keys and values that dense attention reads."""
    store_type: Stored = WaveConfig().store_type
    """Of the keys and values in the wave cache's store."""
    index_type: IndexType = "int8"
    """Of the centroids that a query is ranked against."""
    data: Path | None = None
    """Recorded queries, keys and values in place of structured synthetic ones: the first `tokens`
    and `steps` of them; the heads and the gain are their own."""
    steps: int = 8
    """Decode steps, each with queries of its own."""
    gain: float = 2.0
    """How sharp synthetic attention is: 1 diffuse, 2 middle, 3 sharp."""
    repeats: int = 5
    """Timed passes over all steps."""
    prompt: bool = False
    """Read a whole text through one layer, once, in place of decode steps."""
    budget: float | None = None
    """As in WaveConfig."""
    device: Device = "cpu"
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "q_heads", "kv_heads", "head_dim", "steps", "repeats"):
            _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        _heads(self.q_heads, self.kv_heads, self.head_dim)
        _gain(self.gain)
        if self.prompt and self.data is not None:
            raise UsageError("--prompt and --data were both given; a prompt is synthetic")
        if self.prompt and self.device != "cpu":
            raise UsageError(f"--prompt and --device {self.device} were both given; give cpu")
        require_seed(self.seed)
        SessionConfig(device=self.device, threads=self.threads, wave=WaveConfig(budget=self.budget))

    @property
    def compares(self) -> str:
        data = f"{self.tokens:,} tokens of {self.data}"
        if self.data is None:
            data = (
                f"{self.tokens:,} synthetic tokens of gain {self.gain:g}, {self.q_heads} query "
                f"and {self.kv_heads} KV heads of {self.head_dim} dimensions"
            )
        if self.prompt:
            return f"one layer that reads by wave prefill with one that reads densely, {data}"
        return f"a decode step of wave attention with one of dense attention, {self.dtype}, {data}"

    @property
    def notes(self) -> list[str]:
        if self.device == "cpu":
            return []
        return [
            "on a GPU every step is a captured graph; `wave` has its store in GPU memory, "
            "`wave_ram` in pinned memory of the host and no block cache",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferOptions:
    """`retrolocal bench buffer`: one layer's clusters in a file, behind a block cache, in RAM."""

    tokens: int = 131_072
    q_heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    steps: int = 64
    """Consecutive decode steps."""
    gain: float = 2.0
    """As in AttentionOptions."""
    data: Path | None = None
    """Recorded queries of consecutive steps, keys and values in place of synthetic ones."""
    shares: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0)
    """Sizes of the block cache whose hits are counted, percent of the store."""
    share: float = 10.0
    """Size of the block cache that is timed, percent of the store."""
    readers: int = 2
    """Threads that read ahead."""
    foresight: float = 0.9
    """Cosine between a query and the guess of it that clusters are read ahead for."""
    folder: Path | None = None
    """Where the file is made, for as long as the run lasts; None: the system's temporary folder."""
    repeats: int = 3
    """Timed passes over all steps; each begins with nothing cached."""
    device: Device = "cpu"
    """On a GPU clusters lie in pinned memory in place of a file; `folder`, `readers`, `foresight`
    and `shares` then mean nothing."""
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "q_heads", "kv_heads", "head_dim", "repeats"):
            _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        _at_least("--steps", self.steps, 2)
        _heads(self.q_heads, self.kv_heads, self.head_dim)
        _gain(self.gain)
        for flag, share in (*(("--shares", one) for one in self.shares), ("--share", self.share)):
            if not 0.0 < share <= 100.0:
                raise UsageError(f"{flag} is {share:g}; give percent above 0, up to 100")
        if not 1 <= self.readers <= MAX_READERS:
            raise UsageError(f"--readers is {self.readers}; give 1 to {MAX_READERS}")
        if not 0.0 < self.foresight <= 1.0:
            raise UsageError(f"--foresight is {self.foresight:g}; give above 0, up to 1")
        require_seed(self.seed)
        if self.device == "auto":
            raise UsageError("--device is auto and the two compare other things; give cpu or cuda")
        SessionConfig(device=self.device, threads=self.threads)

    @property
    def compares(self) -> str:
        data = f"{self.tokens:,} tokens of {self.data}"
        if self.data is None:
            data = (
                f"{self.tokens:,} synthetic tokens of gain {self.gain:g}, {self.q_heads} query "
                f"and {self.kv_heads} KV heads of {self.head_dim} dimensions, bf16"
            )
        if self.device != "cpu":
            return (
                "decode steps of one layer whose clusters lie in pinned memory, behind a block "
                f"cache of {self.share:g} % on the GPU, with steps that have everything there, and "
                f"with dense attention that brings everything over the bus; {data}"
            )
        return (
            "decode steps of one layer whose clusters lie in a file that is not in the page cache, "
            f"behind a block cache of {self.share:g} %, with steps whose clusters lie in RAM; "
            f"the hits of replacement policies; {data}"
        )

    @property
    def notes(self) -> list[str]:
        if self.device != "cpu":
            return [
                "every step is a captured graph; the second half of the steps counts, and after "
                "each the host has waited, so that admissions have had time",
            ]
        return [
            "a step fetches its clusters, then runs the compiled attention step; `layer` adds the "
            "matrix products of a layer of this shape (4 hidden^2 for attention, 8 for the MLP), "
            "`attention` nothing",
            f"read ahead during a step is what a guess of the next query, of cosine "
            f"{self.foresight:g} to it, would retrieve; how well a model's guess does is its own",
            "only the first reading of a block is one of the disk: the system keeps a copy",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedOptions:
    """`retrolocal bench decode` and `bench prefill`: whole-model speed at depths."""

    model: str
    """A folder, a Hub id or `builtin`; with random weights a config.json serves too."""
    random_weights: bool = False
    depths: tuple[int, ...] = (0,)
    """Tokens that are in the caches before a test begins."""
    n_gen: tuple[int, ...] = ()
    """Tokens of each generation test; 0 is no test."""
    n_prompt: tuple[int, ...] = ()
    """Tokens of each prompt-reading test; 0 is no test."""
    repetitions: int = 3
    caches: tuple[str, ...] = ("auto",)
    """As of `--cache`; each is timed."""
    in_file: float | None = None
    """Wave caches are timed once more with their clusters in a file, behind block caches of so many
    percent of them, with and without reading ahead."""
    session: SessionConfig = field(default_factory=SessionConfig)
    """Device, dtype, threads, batch size, wave settings; its `cache` is not used."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_model(self.model)
        for flag, counts in (
            ("--n-depth", self.depths),
            ("--n-gen", self.n_gen),
            ("--n-prompt", self.n_prompt),
        ):
            for count in counts:
                _at_least(flag, count, 0)
        _at_least("--repetitions", self.repetitions, 1)
        for cache in self.caches:
            SessionConfig(cache=cast(CacheKind, cache))
        require_seed(self.seed)
        if self.in_file is not None:
            if not 0.0 < self.in_file <= 100.0:
                raise UsageError(f"--in-file is {self.in_file:g}; give percent above 0, up to 100")
            if "wave" not in self.caches or self.session.device == "cuda":
                raise UsageError("--in-file needs --cache wave and a CPU")
        if not self.tests:
            raise UsageError("there is nothing to time; give --n-gen or --n-prompt above 0")

    @property
    def tests(self) -> list[tuple[int, int]]:
        """Tokens of prompt and of generation of each test; one of the two is 0."""
        prompts = ((count, 0) for count in dict.fromkeys(self.n_prompt) if count)
        generations = ((0, count) for count in dict.fromkeys(self.n_gen) if count)
        return [*prompts, *generations]

    @property
    def compares(self) -> str:
        doing = [
            *(["reading a prompt (pp)"] if any(prompt for prompt, _ in self.tests) else []),
            *(["generating token by token (tg)"] if any(gen for _, gen in self.tests) else []),
        ]
        return (
            f"tokens per second of a whole model, {self.model}, {' and '.join(doing)} with "
            f"{' and '.join(map(_with_article, self.caches))} cache at depth {_listed(self.depths)}"
        )

    @property
    def notes(self) -> list[str]:
        notes = []
        if any(self.depths):
            notes.append(
                "depths are filled with structured synthetic keys and values, the same in every "
                "layer, not by reading a text: speed depends on their shape and structure only"
            )
        if self.in_file is not None:
            notes.append(
                f"a file is dropped from the page cache before each repetition; block caches of "
                f"{self.in_file:g} % keep what earlier repetitions left in them"
            )
        if self.random_weights:
            notes.append("the weights are random: speed is measured, not fidelity")
        if len(self.caches) > 1:
            notes.append("caches that fit into memory beside each other (in_turn) take turns")
        if set(self.caches) - {"dense"} and any(prompt for prompt, _ in self.tests):
            notes.append("reading a prompt includes the clustering of what it adds to a wave cache")
        return notes


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOptions:
    """`retrolocal bench all`: what says most about a GPU, one after the other."""

    device: Device = "cuda"
    tokens: int = 1 << 20
    """Of the longest context; attention is timed at an eighth of it too, prompts only there."""
    vram: float = 24.0
    """GiB of GPU memory that the whole model gets."""
    model: str = QWEN
    """The architecture whose decode steps and prompts are timed, with random weights: `builtin`, a
    config.json or its folder, or the shape of Qwen2.5-7B."""
    minutes: float = 8.0
    """What would begin later is left out."""
    out: Path | None = None
    """Where the result of each part is written as soon as there is one."""
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("--tokens", self.tokens, LEAST_OF_ALL)
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise UsageError(f"--minutes is {self.minutes}; give a number above 0")
        require_seed(self.seed)
        SessionConfig(device=self.device, threads=self.threads, vram=self.vram)

    @property
    def compares(self) -> str:
        return (
            "attention with dense attention, the scoring kernel with a device copy, a block cache "
            f"with all in GPU memory and with all over the bus, prompts, and decode steps of "
            f"{self.model} with random weights, up to {self.tokens:,} tokens on {self.device}"
        )

    @property
    def notes(self) -> list[str]:
        return [
            f"what would begin after {self.minutes:g} minutes is left out and named",
            "keys and values are structured and synthetic: speed depends on their structure only",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenOptions:
    """`retrolocal bench reopen`: until a document that was read before is answered about."""

    file: Path
    question: str = "In the beginning"
    model: str = "builtin"
    folder: Path | None = None
    """Where the library is made, for as long as the run lasts; None: that for temporary files."""
    repeats: int = 3

    def __post_init__(self) -> None:
        _at_least("--repeats", self.repeats, 1)
        require_model(self.model)
        if not self.question.strip():
            raise UsageError("--prompt is empty; give some words")
        if not self.file.is_file():
            raise UsageError(f"--file is {self.file}; give a document that is there")

    @property
    def compares(self) -> str:
        return (
            f"a whole program up to its first token: about {self.file.name}, which was read "
            "before, with its files in the page cache and dropped from it, and about nothing; "
            f"{self.model}"
        )

    @property
    def notes(self) -> list[str]:
        return ["seconds include the start of Python and PyTorch, and loading the model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """`retrolocal bench load`: from the start of the program to its first token."""

    model: str = "builtin"
    cold: bool = False
    """Drop the weight files from the page cache before every pass."""
    repeats: int = 5
    session: SessionConfig = field(default_factory=SessionConfig)
    """Device, dtype, quantisation and threads of the chats."""

    def __post_init__(self) -> None:
        _at_least("--repeats", self.repeats, 1)
        require_model(self.model)

    @property
    def compares(self) -> str:
        return (
            "a whole program from its start to its first token, with reading the model's weight "
            f"files; page cache {'cold' if self.cold else 'warm'}; {self.model}"
        )

    @property
    def notes(self) -> list[str]:
        return [
            "read: through a buffer of 1 MiB, as cat does; copy: into memory that is new; medians",
            "program: start of Python, PyTorch and the rest; rest: tokenizer, template, checks",
        ]


def _at_least(flag: str, number: int, least: int) -> None:
    if not least <= number <= MAX_COUNT:
        raise UsageError(f"{flag} is {number:,}; give {least} to {MAX_COUNT:,}")


def _heads(q_heads: int, kv_heads: int, head_dim: int) -> None:
    if q_heads % kv_heads:
        raise UsageError(
            f"--q-heads is {q_heads:,} and --kv-heads {kv_heads:,}; "
            "the former must be a multiple of the latter"
        )
    if head_dim % 2:
        raise UsageError(f"--head-dim is {head_dim:,}; RoPE needs an even number")


def _gain(gain: float) -> None:
    if not (math.isfinite(gain) and gain > 0):
        raise UsageError(f"--gain is {gain}; give a finite number above 0")


def _with_article(word: str) -> str:
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"


def _listed(counts: Iterable[int]) -> str:
    return " and ".join(f"{count:,}" for count in counts)
