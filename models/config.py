"""What a decoder is made of, read from the config.json of a Hugging Face model folder.

`read_config` is the one way in: it answers a frozen `ModelConfig` or raises a `ConfigError` of one
line that names the file, the key and the value. What the decoder would compute differently is
refused, never ignored. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from .families import FAMILIES, Family
from .json_reader import JsonReader, listed, read_json, shown
from .rope_config import MAX_POSITIONS, ChunkConfig, RopeConfig, read_chunks, read_ropes

Activation = Literal["silu", "gelu_pytorch_tanh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """How one layer differs from the others."""

    rope: bool
    """Queries and keys are turned by their positions."""
    window: int | None
    """A query sees itself and the window - 1 tokens before it; None: everything before it."""
    experts: bool = False
    """A few of many MLPs answer each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """The MLPs of a layer that has many of them."""

    count: int
    per_token: int
    """How many of them a token goes through."""
    intermediate_size: int
    normalised: bool
    """The weights of those that answer a token add up to 1."""


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
    local_rope: RopeConfig | None = None
    """The rule of layers with a window, where it is another one."""
    chunks: ChunkConfig | None = None
    """Dual chunk attention, in all layers."""
    activation: Activation = "silu"
    experts: ExpertsConfig | None = None
    """Of the layers that have them."""
    unit_norms: bool = False
    """Weights of norms are differences to 1, and results are rounded last."""
    norms_behind: bool = False
    """What attention and MLP give is normalised before it is added."""
    embedding_scale: float = 1.0
    """Multiplies embeddings, rounded to their dtype."""
    query_scale: float = 1.0
    """Multiplies queries, beside 1/sqrt(head_dim)."""
    layers: tuple[LayerConfig, ...]

    @property
    def chunk_tokens(self) -> int | None:
        """Tokens of a chunk of dual chunk attention."""
        return None if self.chunks is None else self.chunks.length


def read_config(folder: Path, *, ctx_size: int = 0) -> ModelConfig:
    """Reads `folder`/config.json; raises ConfigError.

    A context of at most `ctx_size` tokens (0: as many as the model has positions for) decides which
    of two sets of frequencies LongRoPE takes: kept keys cannot change theirs later.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; give the folder of a Hugging Face model with safetensors"
        )
    return parse_config(read_json(path, ConfigError), ctx_size=ctx_size)


def parse_config(reader: JsonReader, *, ctx_size: int = 0) -> ModelConfig:
    """The configuration in an open config.json; raises the reader's error."""
    name, family = _family(reader)
    reader = _text_part(reader, family)
    activation = _activation(reader, family)
    _refuse_unsupported(reader)
    declared = reader.integer("max_position_embeddings", maximum=MAX_POSITIONS)
    rope, local_rope, positions = read_ropes(
        reader,
        default_theta=family.rope_theta,
        local_theta=family.local_rope_theta,
        declared=declared,
        stretched=family.stretched_rope,
        ctx_size=ctx_size,
    )
    heads = reader.integer("num_attention_heads", maximum=1 << 14)
    hidden = reader.integer("hidden_size", maximum=1 << 20)
    bias = family.attention_bias == "by config" and reader.boolean("attention_bias", default=False)
    mlp_bias = family.mlp_bias == "by config" and reader.boolean("mlp_bias", default=False)
    layers = _layers(reader, family)
    turned = any(layer.rope for layer in layers)
    head_dim = _head_dim(reader, family, hidden, heads)
    _check_turned(reader, rope, head_dim if turned else None)
    return ModelConfig(
        family=name,
        vocab_size=reader.integer("vocab_size", maximum=1 << 24),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", maximum=1 << 22),
        heads=heads,
        kv_heads=_kv_heads(reader, heads),
        head_dim=head_dim,
        rms_norm_eps=reader.number("rms_norm_eps", above=True),
        max_positions=positions,
        tie_embeddings=reader.boolean("tie_word_embeddings", default=family.tie_embeddings),
        qkv_bias=bias or family.attention_bias == "on q, k, v",
        output_bias=bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        rope=rope,
        local_rope=local_rope,
        chunks=_chunks(reader, rope, layers),
        activation=activation,
        experts=_experts(reader) if any(layer.experts for layer in layers) else None,
        unit_norms=family.gemma,
        norms_behind=family.gemma,
        embedding_scale=math.sqrt(hidden) if family.gemma else 1.0,
        query_scale=_query_scale(reader, head_dim) if family.gemma else 1.0,
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


def _text_part(reader: JsonReader, family: Family) -> JsonReader:
    """The keys of the text decoder, with what absent ones mean."""
    values: dict[str, object] = dict(family.absent)
    if family.section is None:
        return JsonReader(values | reader.values, reader.where, reader.error)
    _refuse_unsupported(reader)
    section = reader.section(family.section)
    values |= section.values
    if reader.has("tie_word_embeddings"):
        values["tie_word_embeddings"] = reader.values["tie_word_embeddings"]
    return JsonReader(values, section.where, section.error)


def _activation(reader: JsonReader, family: Family) -> Activation:
    wanted: Activation = "gelu_pytorch_tanh" if family.gemma else "silu"
    for key in ("hidden_act", "hidden_activation"):
        if reader.has(key) and reader.text(key) != wanted:
            raise reader.mistyped(key, f"{wanted!r} (the only one supported)")
    return wanted


def _refuse_unsupported(reader: JsonReader) -> None:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if reader.has(key):
            raise reader.mistyped(key, "null (capped logits are not supported)")
    if reader.boolean("use_bidirectional_attention", default=False):
        raise reader.mistyped("use_bidirectional_attention", "false (the only one supported)")
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


def _head_dim(reader: JsonReader, family: Family, hidden: int, heads: int) -> int:
    if reader.has("head_dim"):
        return reader.integer("head_dim", maximum=1 << 14)
    if family.head_dim is not None:
        return family.head_dim
    if hidden % heads:
        raise reader.refuse(
            f"'hidden_size' {hidden} is not divisible by 'num_attention_heads' {heads}, and "
            "'head_dim' is missing"
        )
    return hidden // heads


def _check_turned(reader: JsonReader, rope: RopeConfig, head_dim: int | None) -> None:
    """Refuses what cannot turn in pairs; a head dimension of None turns nowhere."""
    if head_dim is None:
        return
    turned = rope.dimensions(head_dim)
    if turned % 2 or turned == 0:
        share = "" if rope.share == 1 else f" of {head_dim} by 'partial_rotary_factor' {rope.share}"
        raise reader.refuse(f"the head dimension is {turned}{share}; RoPE needs an even one")
    if rope.kind == "longrope" and len(rope.factors) != turned // 2:
        raise reader.refuse(
            f"LongRoPE gives {len(rope.factors)} factors for {turned // 2} pairs of dimensions"
        )


def _query_scale(reader: JsonReader, head_dim: int) -> float:
    return math.sqrt(head_dim / reader.number("query_pre_attn_scalar", above=True))


def _chunks(
    reader: JsonReader, rope: RopeConfig, layers: tuple[LayerConfig, ...]
) -> ChunkConfig | None:
    if not reader.has("dual_chunk_attention_config"):
        return None
    if any(layer.window is not None or not layer.rope for layer in layers):
        raise reader.refuse(
            "'dual_chunk_attention_config' is not supported together with sliding windows or "
            "layers without RoPE"
        )
    if rope.kind != "default":
        raise reader.refuse(
            f"'dual_chunk_attention_config' is not supported together with rope type {rope.kind!r}"
        )
    return read_chunks(reader.section("dual_chunk_attention_config"))


def _experts(reader: JsonReader) -> ExpertsConfig:
    # transformers writes the second name since version 5.
    newer = reader.has("num_local_experts") and not reader.has("num_experts")
    key = "num_local_experts" if newer else "num_experts"
    count = reader.integer(key, maximum=1 << 14)
    per_token = reader.integer("num_experts_per_tok", maximum=1 << 14)
    if per_token > count:
        raise reader.refuse(f"'num_experts_per_tok' is {per_token} of {key!r} {count}")
    return ExpertsConfig(
        count=count,
        per_token=per_token,
        intermediate_size=reader.integer("moe_intermediate_size", maximum=1 << 22),
        normalised=reader.boolean("norm_topk_prob", default=False),
    )


def _expert_layers(reader: JsonReader, count: int) -> list[bool]:
    """For each layer whether it holds experts."""
    step, plain = 1, []
    if reader.has("decoder_sparse_step"):
        step = reader.integer("decoder_sparse_step", maximum=1 << 20)
    if reader.has("mlp_only_layers"):
        plain = reader.items("mlp_only_layers")
    for layer in plain:
        if type(layer) is not int:
            raise reader.refuse(f"'mlp_only_layers' holds {shown(layer)}; numbers are needed")
    return [layer not in plain and (layer + 1) % step == 0 for layer in range(count)]


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
    experts = _expert_layers(reader, count) if family.experts else [False] * count
    return tuple(
        LayerConfig(rope=turned, window=window if slides else None, experts=many)
        for turned, slides, many in zip(rope, sliding, experts, strict=True)
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
    always = family.windows in ("never", "by pattern")
    switched_on = reader.boolean("use_sliding_window", default=always)
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
    if family.windows == "by pattern":
        period = reader.integer("sliding_window_pattern", maximum=1 << 20)
        return [(index + 1) % period != 0 for index in range(len(rope))]
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
