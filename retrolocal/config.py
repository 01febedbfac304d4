"""The settings of the program as frozen values, checked where they enter.

Nothing here reads a file or imports a library. Environment variables are read here and nowhere
else.
"""

from __future__ import annotations

import math
import os
import reprlib
from contextlib import suppress
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal, cast, get_args

from .errors import UsageError

CacheKind = Literal["auto", "dense", "wave"]
Device = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Scheme = Literal["wave", "paper"]
IndexType = Literal["int8", "bf16", "f32"]
StoreType = Literal["bf16", "int8", "int4"]
PrefillKind = Literal["auto", "dense", "wave"]
Quant = Literal["none", "int8", "int4"]


MAX_THREADS = 512
"""More threads than this only make a machine stand still."""


MOST_TOKENS = 1 << 31
"""No model has more positions."""


SHARES = tuple(
    f"{what}{name}" for what in ("", "sharp_", "flat_", "prefill_") for name in ("descend", "cap")
)
"""Settings of WaveConfig that are shares, above 0 and up to 1."""


DOCUMENT_STORE: StoreType = "int8"
"""What the command line keeps keys and values in unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveConfig:
    """How a wave cache clusters and what a query reads (ARCHITECTURE.md, "The wave cache")."""

    scheme: Scheme = "wave"
    """`wave`: second order, all clusters covered; `paper`: RetroInfer as published."""
    budget: float | None = None
    """Share of the clustered tokens retrieved exactly, (0, 1]; None adapts it to the mass."""
    index_type: IndexType = "int8"
    """How centroids and value sums are kept."""
    store_type: StoreType = "bf16"
    """How clustered keys and values are kept; `bf16` as they come, in the dtype of the cache."""
    segment_tokens: int = 8192
    """Tokens clustered together."""
    cluster_tokens: int = 16
    """Tokens per cluster, outliers counted in."""
    group_clusters: int = 8
    """Clusters per group of the coarse level."""
    descend: float = 0.15
    """Share of the groups whose clusters a query looks at (`least_groups` if that is more; in texts
    of up to 65,536 tokens 256)."""
    least_groups: int = 64
    epsilon: float = 0.002
    """`budget` None: retrieve until less than this share of the mass is left to estimation ..."""
    floor: int = 64
    """... but at least so many clusters ..."""
    cap: float = 0.022
    """... and at most this share of the clustered tokens (`least` if that is more) ..."""
    least: int = 1024
    """Tokens that may be retrieved however short the text is ..."""
    most: int = 10240
    """... and however long; per layer and KV head, with `budget` None."""
    sure: float = 0.1
    """Attention is sharp when the groups that would not be looked into claim less than this share
    of the mass. They are not believed, because a mean hides a lone token: ..."""
    frozen: float = 16.0
    """(where the variance of a group's logits is this or more, on the mean over groups and queries:
    there its mass is ruled by its largest terms, which nothing knows; ..."""
    calm: float = 0.01
    """... where it is less, they have to claim less than this share) ..."""
    sharp_descend: float = 0.2
    """... this share of the groups is looked into, or 4,096 of them if that is more ..."""
    sharp_cap: float = 0.03
    """... and this share of the tokens retrieved (twice `least` if that is more; 4 % where there
    are more groups than that), whatever mass is believed to be left."""
    flat: float = 6.0
    """Attention is flat where that variance is less than this: means are all that is left of most
    clusters, whatever is retrieved, so ..."""
    flat_descend: float = 0.25
    """... this share of the groups is looked into ..."""
    flat_cap: float = 0.035
    """... and at most this share of the tokens retrieved."""
    prefill_descend: float = 0.06
    """Wave prefill: share of the groups that a block of queries looks into ..."""
    prefill_cap: float = 0.01
    """... and share of the clustered tokens that it attends exactly."""
    iterations: int = 8
    """Rounds of spherical k-means."""
    outlier_fraction: float = 0.01
    """Share of a segment's tokens, farthest from their centroid, made clusters of their own."""
    sink_tokens: int = 4
    """Tokens at the very start that are always attended exactly."""
    window_tokens: int = 64
    """Tokens at the end that are always attended exactly."""
    growth_tokens: int = 1024
    """While generating, this many unclustered tokens between sinks and window make a segment."""

    def __post_init__(self) -> None:
        _require_numbers(self)
        if self.budget is not None and not 0.0 < self.budget <= 1.0:
            raise UsageError(f"--budget is {self.budget}; give auto or a fraction above 0, up to 1")
        _one_of("--scheme", self.scheme, get_args(Scheme))
        for name in (
            "segment_tokens",
            "cluster_tokens",
            "group_clusters",
            "window_tokens",
            "growth_tokens",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sink_tokens < 0 or self.iterations < 0:
            raise UsageError("sink_tokens and iterations must not be negative")
        _one_of("--index-type", self.index_type, get_args(IndexType))
        _one_of("--store-type", self.store_type, get_args(StoreType))
        for name in SHARES:
            if not 0.0 < getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is {getattr(self, name)}; give above 0, up to 1")
        if not (
            0.0 <= self.epsilon < 1.0
            and 0.0 <= self.sure < 1.0
            and 0.0 <= self.calm < 1.0
            and min(self.floor, self.least, self.frozen, self.flat) >= 0
        ):
            raise UsageError(
                "epsilon, sure and calm must be 0 up to below 1; floor, least, frozen and flat not "
                "negative"
            )
        if not 0.0 <= self.outlier_fraction < 1.0:
            raise UsageError(f"outlier_fraction is {self.outlier_fraction}; give 0 up to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn; names, defaults and order are llama.cpp's."""

    temperature: float = 0.8
    """0 is greedy."""
    top_k: int = 40
    """Keep the k likeliest tokens; 0 or less keeps all."""
    top_p: float = 0.95
    """Keep the likeliest tokens until their mass reaches p; 1 keeps all."""
    min_p: float = 0.05
    """Keep tokens at least this fraction as likely as the likeliest; 0 keeps all."""
    repeat_penalty: float = 1.0
    """Divide positive and multiply negative logits of recent tokens; 1 does nothing."""
    repeat_last_n: int = 64
    """How many recent tokens the penalties look at; 0 none, -1 all."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    """-1 draws a new seed each time."""

    def __post_init__(self) -> None:
        _require_numbers(self)
        for flag, number in (
            ("--temp", self.temperature),
            ("--repeat-penalty", self.repeat_penalty),
            ("--presence-penalty", self.presence_penalty),
            ("--frequency-penalty", self.frequency_penalty),
        ):
            if not math.isfinite(number):
                raise UsageError(f"{flag} is {number}; give a finite number")
        if self.temperature < 0:
            raise UsageError(f"--temp is {self.temperature}; it must be 0 (greedy) or more")
        for flag, value in (("--top-p", self.top_p), ("--min-p", self.min_p)):
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"{flag} is {value}; it must lie between 0 and 1")
        if self.repeat_penalty <= 0:
            raise UsageError(f"--repeat-penalty is {self.repeat_penalty}; it must be above 0")
        if self.repeat_last_n < -1:
            raise UsageError(f"--repeat-last-n is {self.repeat_last_n}; give -1 (all), 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """How a session loads its model and keeps its context."""

    device: Device = "auto"
    """`auto` takes a GPU when there is one."""
    dtype: DtypeName = "auto"
    """`auto` is the checkpoint's own (float32 where a CPU would compute in float16)."""
    quant: Quant = "none"
    """Bits of the weights' matrices, group-wise; `none` leaves them as the checkpoint has them."""
    vram: float | None = None
    """GiB of a GPU's memory that may be used; None is all that is free."""
    cache: CacheKind = "auto"
    """`auto` is a wave cache that stays dense up to the length where that is faster."""
    prefill: PrefillKind = "auto"
    """How a prompt is read through a wave cache: `wave` goes through the index from the length on
    where that is faster; `auto` reads exactly, as `dense` does."""
    wave: WaveConfig = field(default_factory=WaveConfig)
    ctx_size: int = 0
    """Tokens a context may have; 0 is what the model has positions for."""
    batch_size: int = 8192
    """Tokens of a prompt read at once."""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice."""
    ram: int = 0
    """Bytes of memory that the process may use; what is more lies in a file. 0: what is free."""
    revision: str | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        _require_numbers(self)
        _one_of("--device", self.device, get_args(Device))
        _one_of("--dtype", self.dtype, get_args(DtypeName))
        _one_of("--quant", self.quant, get_args(Quant))
        _one_of("--cache", self.cache, get_args(CacheKind))
        _one_of("--prefill", self.prefill, get_args(PrefillKind))
        if self.vram is not None and not (math.isfinite(self.vram) and self.vram > 0):
            raise UsageError(f"--vram is {self.vram:g}; give a size above 0, such as 24G")
        if self.ctx_size < 0:
            raise UsageError(f"--ctx-size is {self.ctx_size}; give 0 (the model's) or more")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is {self.batch_size}; it must be at least 1")
        if self.ram < 0:
            raise UsageError(f"--ram is {self.ram:,}; give bytes, or 0 (all that are free)")
        if self.ram and self.device == "cuda":
            raise UsageError("--ram bounds what a CPU computes with; leave it out on a GPU")
        if not 0 <= self.threads <= MAX_THREADS:
            raise UsageError(f"--threads is {self.threads}; give 0 (automatic) to {MAX_THREADS}")


def session_config(
    *,
    device: str,
    dtype: str,
    cache: str,
    scheme: str,
    budget: float | None,
    store_type: str,
    prefill: str,
    quant: str,
    **others: Any,
) -> SessionConfig:
    """A `SessionConfig` from words that are checked when it is made; raises UsageError."""
    return SessionConfig(
        device=cast(Device, device),
        dtype=cast(DtypeName, dtype),
        cache=cast(CacheKind, cache),
        wave=WaveConfig(
            scheme=cast(Scheme, scheme), budget=budget, store_type=cast(StoreType, store_type)
        ),
        prefill=cast(PrefillKind, prefill),
        quant=cast(Quant, quant),
        **others,
    )


def require_model(model: str | None) -> None:
    """Raises UsageError for a name that is empty; None leaves the choice to the program."""
    if model is not None and not model.strip():
        raise UsageError("--model is empty; give a folder, a Hub id or builtin")


def require_predict(tokens: int) -> None:
    """Raises UsageError for what cannot be the length of an answer; -1: as many as fit."""
    _number("max_new_tokens", tokens, whole=True)
    if tokens < -1:
        raise UsageError(f"--predict is {tokens}; give -1 (all that fit) or more")
    if tokens > MOST_TOKENS:
        raise UsageError(f"--predict is {tokens}; give at most {MOST_TOKENS}, or -1 (all that fit)")


def _require_numbers(settings: WaveConfig | SamplingConfig | SessionConfig) -> None:
    """Raises UsageError where a number is wanted and something else is given, as Python can."""
    for one in fields(settings):
        wanted, _, optional = str(one.type).partition(" | ")
        value = getattr(settings, one.name)
        if wanted in ("int", "float") and not (optional and value is None):
            number = _number(one.name, value, whole=wanted == "int")
            object.__setattr__(settings, one.name, number)


def _number(name: str, value: Any, *, whole: bool) -> int | float:
    """What counts as a number in Python, of whatever library, as Python's own."""
    kind: Any = Integral if whole else Real
    with suppress(OverflowError):
        if isinstance(value, kind) and not isinstance(value, bool):
            number = int(value) if whole else float(value)
            return value if isinstance(value, int | float) else number
    wanted = "a whole number" if whole else "a number"
    raise UsageError(f"{name} is {reprlib.repr(value)}; give {wanted}")


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{flag} is {value!r}; give one of {', '.join(known)}")


def limit_spinning() -> None:
    """Before PyTorch is imported: its idle threads then spin for some 0.03 ms only, or not at all.

    Attention's compiled kernels run between PyTorch's operations on threads of their own; cores
    that spin for the next operation are not there for them. Threads that sleep at once take longer
    to wake than most operations take, so where the OpenMP is GNU's they wait as long as operations
    are apart (measured in PERFORMANCE.md). What the user has set wins.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def environment(name: str) -> str | None:
    """The value of `RETROLOCAL_<name>`, None when unset or empty.

    Known: MODEL (default of -m), DEVICE (of --device), PDF_PASSWORD (of --password), LIBRARY (its
    folder), CONFIG (the configuration file).
    """
    return os.environ.get(f"RETROLOCAL_{name}") or None


def hub_token_variable() -> str | None:
    """`$HF_TOKEN` or its old name, whichever holds a token of the Hugging Face Hub."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return next((f"${name}" for name in names if os.environ.get(name)), None)
