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

RopeKind = Literal["default", "linear", "llama3", "yarn"]

MAX_POSITIONS = 1 << 31

_REFUSED_KINDS = {"dynamic", "longrope", "su"}
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
}
_HARMLESS_KEYS: dict[RopeKind, set[str]] = {
    "default": {"original_max_position_embeddings"},
    "linear": {"original_max_position_embeddings"},
    "llama3": set(),
    "yarn": {"finetuned"},
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


def read_rope(config: JsonReader, *, default_theta: float, declared: int) -> tuple[RopeConfig, int]:
    """The rule of a config.json, and the number of positions it serves.

    `declared` is max_position_embeddings. A YaRN section that states the original positions serves
    that many times its factor: Qwen's instructions add such a section and leave
    max_position_embeddings as it was. Raises the reader's error with the offending key.
    """
    section = _section(config)
    theta_from = section if section.has("rope_theta") else config
    theta = default_theta
    if theta_from.has("rope_theta"):
        theta = theta_from.number("rope_theta", minimum=1.0, above=True)
    for reader in (section, config):
        _refuse_partial(reader)
    kind = _kind(section)
    _refuse_unknown_keys(section, kind)
    if kind == "default":
        return RopeConfig(kind=kind, theta=theta), declared
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


def _kind(section: JsonReader) -> RopeKind:
    names = [section.text(key) for key in ("rope_type", "type") if section.has(key)]
    if len(set(names)) > 1:
        raise section.refuse(f"'rope_type' is {shown(names[0])} but 'type' is {shown(names[1])}")
    name = names[0] if names else "default"
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
    supported = ", ".join(get_args(RopeKind))
    raise section.refuse(f"rope type {shown(name)} is not supported; supported are {supported}")


def _refuse_unknown_keys(section: JsonReader, kind: RopeKind) -> None:
    known = _COMMON_KEYS | _KEYS[kind] | _HARMLESS_KEYS[kind]
    unknown = sorted(key for key in section.values if key not in known and section.has(key))
    if unknown:
        raise section.refuse(f"rope type {kind!r} with unsupported keys: {listed(unknown)}")


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
