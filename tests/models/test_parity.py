"""The decoder against transformers: the same logits, however the prompt is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrolocal.cache import DenseCache, RingCache
from retrolocal.caches import layer_caches
from retrolocal.config import SessionConfig, WaveConfig
from retrolocal.errors import WeightsError
from retrolocal.models import ModelConfig, read_config
from retrolocal.models.decoder import Decoder
from retrolocal.models.weights import load_decoder
from retrolocal.wave.cache import WaveCache

EVERYTHING = WaveConfig(
    budget=1.0, segment_tokens=4, growth_tokens=2, window_tokens=2, sink_tokens=1, cluster_tokens=2
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha-head_dim": ("llama", {"num_key_value_heads": 4, "head_dim": 20}),
    "llama-gqa7": (
        "llama",
        {"num_attention_heads": 7, "num_key_value_heads": 1, "hidden_size": 56},
    ),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}},
    ),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama-yarn-mscale": (
        "llama",
        {"rope_parameters": YARN | {"mscale": 1.3, "mscale_all_dim": 0.5, "truncate": False}},
    ),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-window-1": ("mistral", {"sliding_window": 1}),
    "mistral-full": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-gqa7": (
        "qwen2",
        {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 56},
    ),
    "qwen2-window": ("qwen2", SLIDING | {"max_window_layers": 1, "num_hidden_layers": 3}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-bias-window": (
        "qwen3",
        SLIDING
        | {
            "head_dim": 8,
            "attention_bias": True,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3-yarn-factor": (
        "qwen3",
        {"head_dim": 32, "rope_parameters": YARN | {"attention_factor": 1.4, "beta_fast": 8.0}},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "smollm3-window": ("smollm3", SLIDING | {"no_rope_layer_interval": 2}),
    "smollm3-built-in": (
        "smollm3",
        SLIDING
        | {
            "attention_bias": True,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "no_rope_layers": [1, 1, 0],
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.2, 2.5, 4.0, 9.0],
    "original_max_position_embeddings": 10,
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
    "head_dim": 16,
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
GEMMA = {
    "num_hidden_layers": 7,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "sliding_window": 5,
    "tie_word_embeddings": True,
    "rope_parameters": GEMMA_ROPES,
}
CASES |= {
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "qwen3_moe-mixed-layers": (
        "qwen3_moe",
        EXPERTS
        | {
            "num_hidden_layers": 4,
            "mlp_only_layers": [3],
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "num_experts_per_tok": 1,
        },
    ),
    "phi3": ("phi3", {"num_key_value_heads": 4}),
    "phi3-window": ("phi3", {"sliding_window": 5}),
    "phi3-partial": (
        "phi3",
        {
            "hidden_size": 64,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "num_attention_heads": 4,
            "hidden_size": 48,
            "original_max_position_embeddings": 10,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.7},
        },
    ),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3-global": (
        "gemma3_text",
        GEMMA | {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
    ),
}

CUTS = ([14], [6, 1, 4, 3], [3] + [1] * 11)
"""Lengths of the pieces of a prompt: at once, uneven chunks, mostly token by token."""


def prompt(vocab: int, tokens: int = 14) -> Tensor:
    return torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(1))


def run(decoder: Decoder, caches: Any, token_ids: Tensor, cuts: list[int]) -> Tensor:
    """Logits of all tokens, fed in pieces of the given lengths."""
    pieces, start = [], 0
    for length in cuts:
        piece = slice(start, start + length)
        positions = torch.arange(start, start + length)
        pieces.append(decoder(token_ids[piece], positions, caches, length))
        start += length
    assert start == len(token_ids)
    return torch.cat(pieces)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(
    case: str, make_checkpoint: Any, make_caches: Any
) -> None:
    family, overrides = CASES[case]
    checkpoint = make_checkpoint(family, **overrides)
    config = read_config(checkpoint.folder)
    decoder = load_decoder(
        checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu")
    )
    token_ids = prompt(config.vocab_size)
    expected = checkpoint.logits(token_ids)
    assert expected.std() > 0.5, "logits too small for the comparison to mean anything"
    for cuts in CUTS:
        logits = run(decoder, make_caches(config), token_ids, cuts)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def real_caches(config: ModelConfig, *, wave: bool) -> list[Any]:
    def whole() -> DenseCache | WaveCache:
        return WaveCache(EVERYTHING) if wave else DenseCache()

    return [RingCache(x.window) if x.window is not None else whole() for x in config.layers]


@pytest.mark.parametrize("wave", [False, True], ids=["dense", "wave"])
@pytest.mark.parametrize(
    "case",
    [
        *("llama", "mistral-window", "qwen2", "qwen3", "smollm3-window"),
        *("qwen3_moe", "phi3-longrope", "gemma3"),
    ],
)
def test_the_caches_of_a_session_give_the_same_logits(
    case: str, wave: bool, make_checkpoint: Any
) -> None:
    family, overrides = CASES[case]
    checkpoint = make_checkpoint(family, **overrides)
    config = read_config(checkpoint.folder)
    decoder = load_decoder(
        checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu")
    )
    token_ids = prompt(config.vocab_size)
    for cuts in CUTS:
        logits = run(decoder, real_caches(config, wave=wave), token_ids, cuts)
        torch.testing.assert_close(logits, checkpoint.logits(token_ids), atol=1e-4, rtol=0)


def test_no_layer_with_a_window_has_an_index(make_checkpoint: Any) -> None:
    config = read_config(make_checkpoint("gemma3_text", **GEMMA).folder)
    caches = layer_caches(
        config, SessionConfig(cache="wave"), torch.float32, torch.device("cpu"), expected=1 << 20
    )
    kinds = [type(cache).__name__ for cache in caches]
    assert kinds == ["RingCache"] * 5 + ["WaveCache", "RingCache"]


def test_longrope_of_a_short_context(make_checkpoint: Any, make_caches: Any) -> None:
    """As transformers does for a text that is no longer than the original positions."""
    checkpoint = make_checkpoint("phi3", **CASES["phi3-longrope"][1])
    token_ids = prompt(131, tokens=10)
    expected = checkpoint.logits(token_ids)
    for ctx_size, same in ((10, True), (0, False), (11, False)):
        config = read_config(checkpoint.folder, ctx_size=ctx_size)
        decoder = load_decoder(
            checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu")
        )
        logits = run(decoder, make_caches(config), token_ids, [10])
        assert torch.allclose(logits, expected, atol=1e-4, rtol=0) == same


@pytest.mark.parametrize(
    ("text", "head", "eyes"),
    [
        ("language_model.model.", "language_model.lm_head.", "vision_tower."),
        ("model.language_model.", "lm_head.", "model.vision_tower."),
    ],
    ids=["older names", "newer names"],
)
def test_the_text_part_of_a_checkpoint_that_also_sees(
    text: str, head: str, eyes: str, make_checkpoint: Any, make_caches: Any
) -> None:
    checkpoint = make_checkpoint("gemma3_text", **GEMMA | {"tie_word_embeddings": False})
    token_ids = prompt(131)
    expected = checkpoint.logits(token_ids)
    path = checkpoint.folder / "model.safetensors"
    tensors = {
        (head + name.removeprefix("lm_head."))
        if name.startswith("lm_head.")
        else text + name.removeprefix("model."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors | {f"{eyes}patch.weight": torch.zeros(3)}, path)
    inner = json.loads((checkpoint.folder / "config.json").read_text())
    outer = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": inner,
        "vision_config": {},
    }
    (checkpoint.folder / "config.json").write_text(json.dumps(outer))
    config = read_config(checkpoint.folder)
    decoder = load_decoder(
        checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu")
    )
    logits = run(decoder, make_caches(config), token_ids, [14])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_fused_projections_of_another_shape_are_named(make_checkpoint: Any) -> None:
    checkpoint = make_checkpoint("phi3")
    checkpoint.edit(num_key_value_heads=1)
    config = read_config(checkpoint.folder)
    with pytest.raises(WeightsError, match=r"qkv_proj.weight is \[96, 48\] instead of \[72, 48\]"):
        load_decoder(checkpoint.folder, config, dtype=None, device=torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bfloat16_stays_as_close_as_rounding_allows(
    family: str, make_checkpoint: Any, make_caches: Any
) -> None:
    checkpoint = make_checkpoint(family, head_dim=16)
    config = read_config(checkpoint.folder)
    decoder = load_decoder(
        checkpoint.folder, config, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    token_ids = prompt(config.vocab_size)
    exact = checkpoint.logits(token_ids)
    checkpoint.model.bfloat16()
    theirs = checkpoint.logits(token_ids).float()
    ours = run(decoder, make_caches(config), token_ids, [14])
    error, allowed = ((part - exact).square().mean().sqrt() for part in (ours, theirs))
    assert error < 1.5 * allowed


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "heads",
    [(4, 4, 12), (4, 2, 20), (7, 1, 8), (14, 2, 4)],
    ids=lambda heads: "-".join(map(str, heads)),
)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
        LLAMA3,
        YARN,
        YARN | {"attention_factor": 0.9, "truncate": False},
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 16.0, "beta_slow": 2.0},
    ],
    ids=["default", "linear", "llama3", "yarn", "yarn-factor", "yarn-mscale"],
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_matrix(
    family: str,
    rope: dict[str, Any],
    heads: tuple[int, int, int],
    tied: bool,
    make_checkpoint: Any,
    make_caches: Any,
) -> None:
    count, kv_heads, head_dim = heads
    overrides: dict[str, Any] = {
        "num_attention_heads": count,
        "num_key_value_heads": kv_heads,
        "hidden_size": 56,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "rope_parameters": dict(rope),
    }
    if family != "llama":
        overrides["sliding_window"] = 6
    if family not in ("llama", "mistral"):
        overrides |= {"use_sliding_window": True}
    if family in ("qwen2", "qwen3"):
        overrides["max_window_layers"] = 1
    checkpoint = make_checkpoint(family, **overrides)
    config = read_config(checkpoint.folder)
    decoder = load_decoder(
        checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu")
    )
    token_ids = prompt(config.vocab_size)
    expected = checkpoint.logits(token_ids)
    for cuts in CUTS:
        logits = run(decoder, make_caches(config), token_ids, cuts)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
