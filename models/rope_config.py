"""How positions turn queries and keys, read from config.json.

Accepts both places a rule is written (`rope_theta` with `rope_scaling`, or one `rope_parameters`)
and both names of its type (`rope_type`, `type`). A key that would change the result and is not
understood is refused, never ignored. Knows no tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .json_reader import JsonReader, listed, shown

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]

MAX_POSITIONS = 1 << 31

_LONGROPE = ("longrope", "su")
_REFUSED_KINDS = {"dynamic", *_LONGROPE}
_EVERYWHERE = ("default", "linear", "llama3", "yarn")
_COMMON_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS: dict[RopeKind, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "truncate",
    },
    "longrope": {
        "factor",
        "attention_factor",
        "short_factor",
        "long_factor",
        "original_max_position_embeddings",
    },
}
_HARMLESS_KEYS: dict[RopeKind, set[str]] = {
    "default": {"original_max_position_embeddings"},
    "linear": {"original_max_position_embeddings"},
    "llama3": set(),
    "yarn": {"finetuned"},
    "longrope": set(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """One rule of rotary position embedding; fields a kind does not use keep their defaults."""

    kind: RopeKind
    theta: float
    """Base of the geometric series of wavelengths."""
    factor: float = 1.0
    """By how much positions are compressed; 1 or more."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines."""
    original_positions: int = 0
    """Positions the model was trained with before its context was stretched."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    share: float = 1.0
    """Of the dimensions of a head, from the first on, that turn."""
    factors: tuple[float, ...] = ()
    """LongRoPE: what each wavelength is multiplied with."""

    def dimensions(self, head_dim: int) -> int:
        """How many dimensions of a head turn."""
        return int(head_dim * self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkConfig:
    """Dual chunk attention (arXiv 2402.17463): no relative position is larger than was trained.

    A key turns by its position modulo `length`. A query turns by its own position modulo `length`
    for the keys of its chunk, `length` later but at most by `farthest` for those of the chunk
    before, and by `farthest` for all earlier ones.
    """

    length: int
    """Tokens of a chunk."""
    farthest: int
    original_positions: int | None
    """From this length on logits are multiplied by (1 + ln(length / original_positions) / 10)^2,
    as YaRN has it, `length` being what the query sees."""


def read_chunks(section: JsonReader) -> ChunkConfig:
    """`dual_chunk_attention_config`; raises the reader's error with the offending key."""
    known = {"chunk_size", "local_size", "original_max_position_embeddings"}
    # Which keys other programs leave out to be quicker; here the index says that.
    sparse = {key for key in section.values if key.startswith("sparse_attention_")}
    if unknown := sorted(set(section.values) - known - sparse):
        raise section.refuse(f"unsupported keys: {listed(unknown)}")
    size = section.integer("chunk_size", maximum=MAX_POSITIONS)
    local = section.integer("local_size", minimum=0, maximum=MAX_POSITIONS)
    if local >= size:
        raise section.refuse(f"'local_size' is {local}; it must be below 'chunk_size' {size}")
    key, original = "original_max_position_embeddings", None
    if section.has(key):
        original = section.integer(key, maximum=MAX_POSITIONS)
    return ChunkConfig(length=size - local, farthest=size, original_positions=original)


def read_ropes(
    config: JsonReader,
    *,
    default_theta: float,
    local_theta: float | None,
    declared: int,
    stretched: bool,
    ctx_size: int,
) -> tuple[RopeConfig, RopeConfig | None, int]:
    """The rule of a config.json, that of its layers with a window, and the positions served.

    `local_theta` None: both rules are one. The other arguments are those of `read_rope`.
    """
    if local_theta is None:
        rope, positions = read_rope(
            config,
            default_theta=default_theta,
            declared=declared,
            stretched=stretched,
            ctx_size=ctx_size,
        )
        return rope, None, positions
    values = dict(config.values)
    for key in ("rope_local_base_freq", "rope_parameters"):
        values.pop(key, None)
    local = {"rope_theta": local_theta}
    if config.has("rope_local_base_freq"):
        local["rope_theta"] = config.number("rope_local_base_freq", minimum=1.0, above=True)
    parts = config.section("rope_parameters") if config.has("rope_parameters") else None
    if parts is not None:
        _refuse_unknown(parts, {"full_attention", "sliding_attention"}, "rope_parameters")
    found = []
    for name, plain, theta in (
        ("full_attention", values, default_theta),
        ("sliding_attention", local, local_theta),
    ):
        reader = JsonReader(dict(plain), config.where, config.error)
        if parts is not None and parts.has(name):
            part = parts.section(name)
            reader.values["rope_parameters"] = part.values
            if part.has("rope_theta"):
                reader.values.pop("rope_theta", None)
        found.append(read_rope(reader, default_theta=theta, declared=declared))
    (rope, positions), (local_rope, _) = found
    return rope, local_rope, positions


def read_rope(
    config: JsonReader,
    *,
    default_theta: float,
    declared: int,
    stretched: bool = False,
    ctx_size: int = 0,
) -> tuple[RopeConfig, int]:
    """The rule of a config.json, and the number of positions it serves.

    `declared` is max_position_embeddings. A YaRN section that states the original positions serves
    that many times its factor: Qwen's instructions add such a section and leave
    max_position_embeddings as it was. With `stretched`, LongRoPE and partial rotation are read;
    LongRoPE is fixed by `ctx_size` (0: `declared`): up to the original positions it takes the short
    factors, else the long ones. Raises the reader's error with the offending key.
    """
    section = _section(config)
    theta_from = section if section.has("rope_theta") else config
    theta = default_theta
    if theta_from.has("rope_theta"):
        theta = theta_from.number("rope_theta", minimum=1.0, above=True)
    share = _share(section, config) if stretched else 1.0
    if not stretched:
        for reader in (section, config):
            _refuse_partial(reader)
    kind = _kind(section, stretched)
    _refuse_unknown_keys(section, kind)
    if kind == "default":
        return RopeConfig(kind=kind, theta=theta, share=share), declared
    if kind == "longrope":
        return _longrope(config, section, theta, share, declared, ctx_size or declared), declared
    if stretched:
        raise section.refuse(f"rope type {kind!r} is not supported for this model type")
    if kind == "linear":
        return RopeConfig(kind=kind, theta=theta, factor=_factor(section)), declared
    original, stated = _original_positions(config, section, declared)
    if kind == "llama3":
        return _llama3(section, theta, original), declared
    rope = _yarn(section, theta, original, declared)
    reach = int(min(original * rope.factor, MAX_POSITIONS)) if stated else 0
    return rope, max(declared, reach)


def _section(config: JsonReader) -> JsonReader:
    """`rope_scaling` or `rope_parameters`; empty when there is neither."""
    found = [config.section(key) for key in ("rope_scaling", "rope_parameters") if config.has(key)]
    found = [section for section in found if section.values]
    if len(found) == 2 and found[0].values != found[1].values:
        raise config.refuse("'rope_scaling' and 'rope_parameters' differ; keep the one that holds")
    return found[0] if found else JsonReader({}, config.where, config.error)


def _kind(section: JsonReader, stretched: bool) -> RopeKind:
    names = [section.text(key) for key in ("rope_type", "type") if section.has(key)]
    if len(set(names)) > 1:
        raise section.refuse(f"'rope_type' is {shown(names[0])} but 'type' is {shown(names[1])}")
    name = names[0] if names else "default"
    if stretched and name in _LONGROPE:
        return "longrope"
    if name in _REFUSED_KINDS:
        raise section.refuse(
            f"rope type {name!r} is not supported: it changes the keys of earlier tokens as the "
            "text grows, so they could not be kept; choose a model with default, linear, llama3 or "
            "yarn"
        )
    for kind in get_args(RopeKind):
        if name == kind:
            known: RopeKind = kind
            return known
    supported = ", ".join((*_EVERYWHERE, "longrope") if stretched else _EVERYWHERE)
    raise section.refuse(f"rope type {shown(name)} is not supported; supported are {supported}")


def _refuse_unknown_keys(section: JsonReader, kind: RopeKind) -> None:
    known = _COMMON_KEYS | _KEYS[kind] | _HARMLESS_KEYS[kind]
    unknown = sorted(key for key in section.values if key not in known and section.has(key))
    if unknown:
        raise section.refuse(f"rope type {kind!r} with unsupported keys: {listed(unknown)}")


def _share(section: JsonReader, config: JsonReader) -> float:
    """`partial_rotary_factor`; where both places have it they must agree."""
    key = "partial_rotary_factor"
    found = [reader.number(key, above=True) for reader in (section, config) if reader.has(key)]
    if len(set(found)) > 1 or any(share > 1 for share in found):
        raise config.refuse(f"{key!r} is {found}; one number above 0, up to 1, is needed")
    return found[0] if found else 1.0


def _longrope(
    config: JsonReader,
    section: JsonReader,
    theta: float,
    share: float,
    declared: int,
    ctx_size: int,
) -> RopeConfig:
    original, _ = _original_positions(config, section, declared)
    short, long = (_factors(section, key) for key in ("short_factor", "long_factor"))
    if len(short) != len(long):
        raise section.refuse(
            f"'short_factor' has {len(short)} numbers and 'long_factor' {len(long)}; as many are "
            "needed"
        )
    factor = _factor(section) if section.has("factor") else declared / original
    if section.has("attention_factor"):
        attention = section.number("attention_factor", above=True)
    else:
        attention = 1.0
        if factor > 1 and original > 1:
            attention = math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeConfig(
        kind="longrope",
        theta=theta,
        attention_factor=attention,
        original_positions=original,
        share=share,
        factors=long if ctx_size > original else short,
    )


def _factors(section: JsonReader, key: str) -> tuple[float, ...]:
    numbers = []
    for item in section.items(key):
        one = JsonReader({key: item}, section.where, section.error)
        numbers.append(one.number(key, above=True))
    return tuple(numbers)


def _refuse_unknown(section: JsonReader, known: set[str], name: str) -> None:
    if unknown := sorted(key for key in section.values if key not in known):
        raise section.refuse(f"{name!r} with unsupported keys: {listed(unknown)}")


def _refuse_partial(reader: JsonReader) -> None:
    key = "partial_rotary_factor"
    if reader.has(key) and reader.number(key) != 1.0:
        raise reader.mistyped(key, "1 (every dimension rotated; part of them is not supported)")


def _factor(section: JsonReader) -> float:
    return section.number("factor", minimum=1.0)


def _original_positions(config: JsonReader, section: JsonReader, declared: int) -> tuple[int, bool]:
    """The positions before stretching, and whether the file states them."""
    key = "original_max_position_embeddings"
    for reader in (config, section):
        if reader.has(key):
            return reader.integer(key, maximum=MAX_POSITIONS), True
    return declared, False


def _llama3(section: JsonReader, theta: float, original: int) -> RopeConfig:
    low = section.number("low_freq_factor", above=True)
    return RopeConfig(
        kind="llama3",
        theta=theta,
        factor=_factor(section),
        original_positions=original,
        low_freq_factor=low,
        high_freq_factor=section.number("high_freq_factor", minimum=low, above=True),
    )


def _yarn(section: JsonReader, theta: float, original: int, declared: int) -> RopeConfig:
    if "factor" in section.values and not section.has("factor"):
        factor = max(declared / original, 1.0)
    else:
        factor = _factor(section)
    slow = section.number("beta_slow", above=True) if section.has("beta_slow") else 1.0
    fast = 32.0
    if section.has("beta_fast"):
        fast = section.number("beta_fast", above=True)
    if fast < slow:
        raise section.refuse(f"'beta_fast' is {fast:g}, below 'beta_slow' {slow:g}")
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=factor,
        attention_factor=_yarn_attention_factor(section, factor),
        original_positions=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=section.boolean("truncate", default=True),
    )


def _yarn_attention_factor(section: JsonReader, factor: float) -> float:
    if section.has("attention_factor"):
        return section.number("attention_factor", above=True)

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    keys = ("mscale", "mscale_all_dim")
    one, all_dim = (section.number(key) if section.has(key) else 0.0 for key in keys)
    if one and all_dim:
        return magnitude(one) / magnitude(all_dim)
    return magnitude(1.0)
