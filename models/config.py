"""What a decoder is made of, read from the config.json of a Hugging Face model folder.

`read_config` is the one way in: it answers a frozen `ModelConfig` or raises a `ConfigError` of one
line that names the file, the key and the value. What the decoder would compute differently is
refused, never ignored. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from .families import FAMILIES, Family
from .json_reader import JsonReader, listed, read_json, shown
from .rope_config import MAX_POSITIONS, RopeConfig, read_rope


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """How one layer differs from the others."""

    rope: bool
    """Queries and keys are turned by their positions."""
    window: int | None
    """A query sees itself and the window - 1 tokens before it; None: everything before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of one of the supported families."""

    family: str
    """`model_type` of config.json."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    """Query heads of each layer."""
    kv_heads: int
    """Key and value heads of each layer; divides `heads`."""
    head_dim: int
    rms_norm_eps: float
    max_positions: int
    """Tokens of context the model is made for."""
    tie_embeddings: bool
    """The output matrix is the embedding."""
    qkv_bias: bool
    output_bias: bool
    """Bias of the projection that follows attention."""
    mlp_bias: bool
    qk_norm: bool
    """Queries and keys are normalised per head before RoPE."""
    rope: RopeConfig
    layers: tuple[LayerConfig, ...]


def read_config(folder: Path) -> ModelConfig:
    """Reads `folder`/config.json; raises ConfigError."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; give the folder of a Hugging Face model with safetensors"
        )
    return parse_config(read_json(path, ConfigError))


def parse_config(reader: JsonReader) -> ModelConfig:
    """The configuration in an open config.json; raises the reader's error."""
    name, family = _family(reader)
    _refuse_unsupported(reader)
    declared = reader.integer("max_position_embeddings", maximum=MAX_POSITIONS)
    rope, positions = read_rope(reader, default_theta=family.rope_theta, declared=declared)
    heads = reader.integer("num_attention_heads", maximum=1 << 14)
    hidden = reader.integer("hidden_size", maximum=1 << 20)
    bias = family.attention_bias == "by config" and reader.boolean("attention_bias", default=False)
    mlp_bias = family.mlp_bias == "by config" and reader.boolean("mlp_bias", default=False)
    layers = _layers(reader, family)
    return ModelConfig(
        family=name,
        vocab_size=reader.integer("vocab_size", maximum=1 << 24),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", maximum=1 << 22),
        heads=heads,
        kv_heads=_kv_heads(reader, heads),
        head_dim=_head_dim(reader, family, hidden, heads, any(layer.rope for layer in layers)),
        rms_norm_eps=reader.number("rms_norm_eps", above=True),
        max_positions=_max_positions(reader, positions),
        tie_embeddings=reader.boolean("tie_word_embeddings", default=family.tie_embeddings),
        qkv_bias=bias or family.attention_bias == "on q, k, v",
        output_bias=bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        rope=rope,
        layers=layers,
    )


def _family(reader: JsonReader) -> tuple[str, Family]:
    supported = ", ".join(sorted(FAMILIES))
    name = reader.text("model_type")
    family = FAMILIES.get(name)
    if family is None:
        raise reader.refuse(f"model type {shown(name)} is not supported; supported are {supported}")
    if reader.has("architectures") and family.architecture not in reader.items("architectures"):
        given = listed(str(item) for item in reader.items("architectures")) or "none"
        raise reader.refuse(
            f"architecture {given} is not supported for model type {name}; "
            f"supported is {family.architecture}"
        )
    return name, family


def _refuse_unsupported(reader: JsonReader) -> None:
    if reader.has("hidden_act") and reader.text("hidden_act") != "silu":
        raise reader.mistyped("hidden_act", "'silu' (the only one supported)")
    if reader.has("quantization_config"):
        raise reader.refuse(
            "'quantization_config' is present: quantised weights are not supported; "
            "choose the version of this model in bfloat16, float16 or float32"
        )
    if reader.boolean("rope_interleaved", default=False):
        raise reader.mistyped("rope_interleaved", "false (the only one supported)")
    if reader.has("per_layer_config"):
        raise reader.refuse("'per_layer_config' is not supported: all layers must have one shape")


def _kv_heads(reader: JsonReader, heads: int) -> int:
    key = "num_key_value_heads"
    kv_heads = reader.integer(key, maximum=1 << 14) if reader.has(key) else heads
    if heads % kv_heads:
        raise reader.refuse(f"'num_attention_heads' {heads} is not divisible by {key!r} {kv_heads}")
    return kv_heads


def _head_dim(reader: JsonReader, family: Family, hidden: int, heads: int, rope: bool) -> int:
    if reader.has("head_dim"):
        head_dim = reader.integer("head_dim", maximum=1 << 14)
    elif family.head_dim is not None:
        head_dim = family.head_dim
    elif hidden % heads:
        raise reader.refuse(
            f"'hidden_size' {hidden} is not divisible by 'num_attention_heads' {heads}, and "
            "'head_dim' is missing"
        )
    else:
        head_dim = hidden // heads
    if rope and head_dim % 2:
        raise reader.refuse(f"the head dimension is {head_dim}; RoPE needs an even one")
    return head_dim


def _max_positions(reader: JsonReader, positions: int) -> int:
    """Beyond the original length a model with dual chunk attention was trained to see relative
    positions folded into chunks; plain attention there is not that model, so it is not offered."""
    if not reader.has("dual_chunk_attention_config"):
        return positions
    section = reader.section("dual_chunk_attention_config")
    original = section.integer("original_max_position_embeddings", maximum=MAX_POSITIONS)
    return min(positions, original)


def _layers(reader: JsonReader, family: Family) -> tuple[LayerConfig, ...]:
    count = reader.integer("num_hidden_layers", maximum=1024)
    rope = _rope_layers(reader, count) if family.skips_rope else [True] * count
    window = _window(reader, family)
    sliding = _layer_types(reader, count)
    if sliding is None:
        sliding = _sliding_by_default(reader, family, rope, window is not None)
    elif not _consistent(sliding, family, window):
        raise reader.refuse(
            "'layer_types' contradicts 'sliding_window' and 'use_sliding_window' on which layers "
            "have a window"
        )
    return tuple(
        LayerConfig(rope=turned, window=window if slides else None)
        for turned, slides in zip(rope, sliding, strict=True)
    )


def _consistent(sliding: list[bool], family: Family, window: int | None) -> bool:
    if family.windows in ("never", "all layers"):
        return all(slides == (window is not None) for slides in sliding)
    return window is not None or not any(sliding)


def _window(reader: JsonReader, family: Family) -> int | None:
    """The sliding window that is in use."""
    key = "sliding_window"
    if family.windows == "all layers":
        if key not in reader.values:
            raise reader.refuse(f"the key {key!r} is missing; a number of tokens or null is needed")
        return reader.integer(key, maximum=MAX_POSITIONS) if reader.has(key) else None
    switched_on = reader.boolean("use_sliding_window", default=family.windows == "never")
    if not (switched_on and reader.has(key)):
        return None
    if family.windows == "never":
        raise reader.mistyped(key, "null (no layer of this family has a window)")
    return reader.integer(key, maximum=MAX_POSITIONS)


def _sliding_by_default(
    reader: JsonReader, family: Family, rope: list[bool], in_use: bool
) -> list[bool]:
    if not in_use:
        return [False] * len(rope)
    if family.windows == "layers without rope":
        return [not turned for turned in rope]
    if family.windows == "all layers":
        return [True] * len(rope)
    full = reader.integer("max_window_layers", minimum=0, maximum=1 << 20)
    return [index >= full for index in range(len(rope))]


def _layer_types(reader: JsonReader, count: int) -> list[bool] | None:
    """For each layer whether it slides; None when config.json does not say."""
    if not reader.has("layer_types"):
        return None
    types = reader.items("layer_types")
    for item in types:
        if item not in ("full_attention", "sliding_attention"):
            raise reader.refuse(
                f"'layer_types' holds {shown(item)}; supported are full_attention and "
                "sliding_attention"
            )
    if len(types) != count:
        raise reader.refuse(f"'layer_types' has {len(types)} entries for {count} layers")
    return [item == "sliding_attention" for item in types]


def _rope_layers(reader: JsonReader, count: int) -> list[bool]:
    """For each layer whether it uses RoPE; a 1 in `no_rope_layers` means that it does."""
    if not reader.has("no_rope_layers"):
        interval = 4
        if reader.has("no_rope_layer_interval"):
            interval = reader.integer("no_rope_layer_interval", maximum=1 << 20)
        return [(index + 1) % interval != 0 for index in range(count)]
    flags = reader.items("no_rope_layers")
    if len(flags) < count:
        raise reader.refuse(f"'no_rope_layers' has {len(flags)} entries for {count} layers")
    for flag in flags:
        if type(flag) is not int or flag not in (0, 1):
            raise reader.refuse(f"'no_rope_layers' holds {shown(flag)}; 0 or 1 is needed")
    return [flag == 1 for flag in flags[:count]]
