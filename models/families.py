"""What sets the supported model families apart, as data.

One decoder serves them all: a family says which optional parts its checkpoints have, what an
absent key of config.json means, and how the checkpoint names its tensors. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

HUGGING_FACE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "model.embed_tokens.weight": "embedding.weight",
        "model.layers.*.input_layernorm.weight": "layers.*.attention_norm",
        "model.layers.*.self_attn.q_proj.weight": "layers.*.attention.query.weight",
        "model.layers.*.self_attn.q_proj.bias": "layers.*.attention.query.bias",
        "model.layers.*.self_attn.k_proj.weight": "layers.*.attention.key.weight",
        "model.layers.*.self_attn.k_proj.bias": "layers.*.attention.key.bias",
        "model.layers.*.self_attn.v_proj.weight": "layers.*.attention.value.weight",
        "model.layers.*.self_attn.v_proj.bias": "layers.*.attention.value.bias",
        "model.layers.*.self_attn.o_proj.weight": "layers.*.attention.output.weight",
        "model.layers.*.self_attn.o_proj.bias": "layers.*.attention.output.bias",
        "model.layers.*.self_attn.q_norm.weight": "layers.*.attention.query_norm",
        "model.layers.*.self_attn.k_norm.weight": "layers.*.attention.key_norm",
        "model.layers.*.post_attention_layernorm.weight": "layers.*.mlp_norm",
        "model.layers.*.mlp.gate_proj.weight": "layers.*.mlp.gate.weight",
        "model.layers.*.mlp.gate_proj.bias": "layers.*.mlp.gate.bias",
        "model.layers.*.mlp.up_proj.weight": "layers.*.mlp.up.weight",
        "model.layers.*.mlp.up_proj.bias": "layers.*.mlp.up.bias",
        "model.layers.*.mlp.down_proj.weight": "layers.*.mlp.down.weight",
        "model.layers.*.mlp.down_proj.bias": "layers.*.mlp.down.bias",
        "model.norm.weight": "norm",
        "lm_head.weight": "head.weight",
    }
)
"""Checkpoint name -> parameter of `Decoder`; `*` stands for a number. Parameters that lie below one
another in one tensor are joined by `+`."""

_EXPERTS = {
    "model.layers.*.mlp.gate.weight": "layers.*.mlp.router.weight",
    "model.layers.*.mlp.experts.*.gate_proj.weight": "layers.*.mlp.experts.*.gate.weight",
    "model.layers.*.mlp.experts.*.up_proj.weight": "layers.*.mlp.experts.*.up.weight",
    "model.layers.*.mlp.experts.*.down_proj.weight": "layers.*.mlp.experts.*.down.weight",
}
_FUSED = {
    "model.layers.*.self_attn.qkv_proj.weight": "layers.*.attention.query.weight"
    "+layers.*.attention.key.weight+layers.*.attention.value.weight",
    "model.layers.*.mlp.gate_up_proj.weight": "layers.*.mlp.gate.weight+layers.*.mlp.up.weight",
}
_SANDWICH = {
    "model.layers.*.post_attention_layernorm.weight": "layers.*.attention_out_norm",
    "model.layers.*.pre_feedforward_layernorm.weight": "layers.*.mlp_norm",
    "model.layers.*.post_feedforward_layernorm.weight": "layers.*.mlp_out_norm",
}


def _names(changed: Mapping[str, str]) -> Mapping[str, str]:
    """Those of Hugging Face, with some tensors in the place of those that hold the same."""
    taken = {parameter for joined in changed.values() for parameter in joined.split("+")}
    kept = {
        name: parameter
        for name, parameter in HUGGING_FACE_NAMES.items()
        if name not in changed and parameter not in taken
    }
    return MappingProxyType(kept | dict(changed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One `model_type` of config.json."""

    architecture: str
    """The only entry of `architectures` that is a text decoder of this family."""
    attention_bias: Literal["never", "on q, k, v", "by config"] = "never"
    """`by config`: the key `attention_bias` decides for q, k, v and the output together."""
    mlp_bias: Literal["never", "by config"] = "never"
    qk_norm: bool = False
    """Queries and keys are normalised per head before RoPE."""
    windows: Literal["never", "all layers", "deep layers", "layers without rope", "by pattern"] = (
        "never"
    )
    """Which layers slide when `layer_types` is absent and a window is in use; `by pattern`: all but
    every `sliding_window_pattern`-th."""

    skips_rope: bool = False
    """`no_rope_layers` and `no_rope_layer_interval` are read."""
    tie_embeddings: bool = False
    """What an absent `tie_word_embeddings` means."""
    head_dim: int | None = None
    """What an absent `head_dim` means; None: hidden_size / num_attention_heads."""
    rope_theta: float = 10_000.0
    """What an absent `rope_theta` means."""
    local_rope_theta: float | None = None
    """Layers with a window turn by a rule of their own, this being its base where none is given."""
    stretched_rope: bool = False
    """LongRoPE and `partial_rotary_factor` are read."""
    experts: bool = False
    """Layers may hold experts."""
    gemma: bool = False
    """Norms that store the difference to 1 and stand behind attention and MLP too, embeddings times
    the root of the hidden size, `query_pre_attn_scalar`, GELU."""
    section: str | None = None
    """Where config.json describes the text decoder, if not at its top."""
    absent: Mapping[str, object] = field(default_factory=dict)
    """What other keys mean when they are absent."""
    names: Mapping[str, str] = field(default_factory=lambda: HUGGING_FACE_NAMES)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """How some checkpoints begin their names -> how `names` does."""
    other_parts: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are no part of the text decoder."""

    def checkpoint_name(self, parameter: str) -> str:
        """The tensor in the checkpoint that holds a parameter of `Decoder`."""
        pattern, numbers = _pattern(parameter)
        return _filled(_by_parameter(self.names)[pattern], numbers)

    def parameters_in(self, parameter: str) -> tuple[str, ...]:
        """All parameters that the tensor of this one holds, from its first row on."""
        pattern, numbers = _pattern(parameter)
        joined = self.names[_by_parameter(self.names)[pattern]]
        return tuple(_filled(part, numbers) for part in joined.split("+"))

    def usual_name(self, name: str) -> str | None:
        """A tensor's name as `names` has it; None when it is no part of the text decoder."""
        for beginning, usual in self.prefixes.items():
            if name.startswith(beginning):
                return usual + name.removeprefix(beginning)
        return None if name.startswith(self.other_parts) else name


def _pattern(parameter: str) -> tuple[str, list[str]]:
    """A name with `*` in the place of its numbers, and those."""
    parts = parameter.split(".")
    numbers = [part for part in parts if part.isdecimal()]
    return ".".join("*" if part.isdecimal() else part for part in parts), numbers


def _filled(pattern: str, numbers: Sequence[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def _by_parameter(names: Mapping[str, str]) -> dict[str, str]:
    return {part: name for name, joined in names.items() for part in joined.split("+")}


_GEMMA = Family(
    architecture="Gemma3ForCausalLM",
    attention_bias="by config",
    qk_norm=True,
    windows="by pattern",
    tie_embeddings=True,
    head_dim=256,
    rope_theta=1_000_000.0,
    local_rope_theta=10_000.0,
    gemma=True,
    absent=MappingProxyType(
        {
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
        }
    ),
    names=_names(_SANDWICH),
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            architecture="LlamaForCausalLM", attention_bias="by config", mlp_bias="by config"
        ),
        "mistral": Family(architecture="MistralForCausalLM", windows="all layers"),
        "qwen2": Family(
            architecture="Qwen2ForCausalLM", attention_bias="on q, k, v", windows="deep layers"
        ),
        "qwen3": Family(
            architecture="Qwen3ForCausalLM",
            attention_bias="by config",
            qk_norm=True,
            windows="deep layers",
            head_dim=128,
        ),
        "qwen3_moe": Family(
            architecture="Qwen3MoeForCausalLM",
            attention_bias="by config",
            qk_norm=True,
            experts=True,
            names=MappingProxyType(dict(HUGGING_FACE_NAMES) | _EXPERTS),
        ),
        "phi3": Family(
            architecture="Phi3ForCausalLM",
            windows="all layers",
            stretched_rope=True,
            absent=MappingProxyType({"sliding_window": None}),
            names=_names(_FUSED),
        ),
        "gemma3_text": _GEMMA,
        "gemma3": replace(
            _GEMMA,
            architecture="Gemma3ForConditionalGeneration",
            section="text_config",
            prefixes=MappingProxyType({"language_model.": "", "model.language_model.": "model."}),
            other_parts=(
                "vision_tower.",
                "multi_modal_projector.",
                "model.vision_tower.",
                "model.multi_modal_projector.",
            ),
        ),
        "smollm3": Family(
            architecture="SmolLM3ForCausalLM",
            attention_bias="by config",
            mlp_bias="by config",
            windows="layers without rope",
            skips_rope=True,
            tie_embeddings=True,
            rope_theta=2_000_000.0,
        ),
    }
)
"""By `model_type`."""
