"""What sets the supported model families apart, as data.

One decoder serves them all: a family says which optional parts its checkpoints have, what an
absent key of config.json means, and how the checkpoint names its tensors. Knows no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
"""Checkpoint name -> parameter of `Decoder`; `*` stands for the number of the layer."""


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
    windows: Literal["never", "all layers", "deep layers", "layers without rope"] = "never"
    """Which layers slide when `layer_types` is absent and a window is in use."""
    skips_rope: bool = False
    """`no_rope_layers` and `no_rope_layer_interval` are read."""
    tie_embeddings: bool = False
    """What an absent `tie_word_embeddings` means."""
    head_dim: int | None = None
    """What an absent `head_dim` means; None: hidden_size / num_attention_heads."""
    rope_theta: float = 10_000.0
    """What an absent `rope_theta` means."""
    names: Mapping[str, str] = field(default_factory=lambda: HUGGING_FACE_NAMES)

    def checkpoint_name(self, parameter: str) -> str:
        """The tensor in the checkpoint that holds a parameter of `Decoder`."""
        number = re.search(r"\.(\d+)\.", parameter)
        if number is None:
            return self._by_parameter()[parameter]
        pattern = parameter.replace(number[0], ".*.", 1)
        return self._by_parameter()[pattern].replace("*", number[1])

    def _by_parameter(self) -> dict[str, str]:
        return {parameter: name for name, parameter in self.names.items()}


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
