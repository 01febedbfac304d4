"""config.json: what is read, and that everything else is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrolocal.errors import ConfigError
from retrolocal.models import FAMILIES, LayerConfig, RopeConfig, read_config
from retrolocal.models.config import ExpertsConfig
from retrolocal.models.rope_config import ChunkConfig

SUPPORTED = "gemma3, gemma3_text, llama, mistral, phi3, qwen2, qwen3, qwen3_moe, smollm3"


CHUNKS = {"chunk_size": 64, "local_size": 8, "original_max_position_embeddings": 100}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0] * 6,
    "long_factor": [2.0] * 6,
    "original_max_position_embeddings": 32,
}


def family(name: str, **keys: object) -> dict[str, object]:
    return {"model_type": name, "architectures": [FAMILIES[name].architecture], **keys}


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder / "config.json") in message
    assert len(message) < 400
    return message


def test_a_plain_configuration(write_config: Any) -> None:
    config = read_config(write_config())
    assert (config.family, config.vocab_size, config.hidden_size) == ("llama", 131, 48)
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 2, 12)
    assert not any((config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm))
    assert config.layers == (LayerConfig(rope=True, window=None),) * 2


@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
)
def test_a_missing_key_is_named(key: str, write_config: Any) -> None:
    assert f"the key {key!r} is missing" in refusal(write_config(without=[key]))
    assert f"the key {key!r} is null" in refusal(write_config(**{key: None}))


@pytest.mark.parametrize(
    "value",
    ["64", 64.0, 1.5, True, [64], {"a": 1}, -4, 0, 1 << 40, 10**4000],
    ids=lambda v: repr(v)[:8],
)
@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ],
)
def test_a_value_that_is_no_sensible_count_is_refused(
    key: str, value: object, write_config: Any
) -> None:
    assert f"{key!r} is " in refusal(write_config(**{key: value}))


@pytest.mark.parametrize("value", ["1e-5", 0, -1e-5, float("nan"), float("inf"), False, 10**400])
def test_an_epsilon_that_is_none_is_refused(value: object, write_config: Any) -> None:
    assert "'rms_norm_eps'" in refusal(write_config(rms_norm_eps=value))


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", [1, 0, "true", []])
def test_a_flag_must_be_true_or_false(key: str, value: object, write_config: Any) -> None:
    assert f"{key!r} is " in refusal(write_config(**{key: value}))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("gemma2", "Gemma2ForCausalLM"),
        ("phimoe", "PhimoeForCausalLM"),
        ("mixtral", "MixtralForCausalLM"),
        ("x\n\x1b[2J", None),
    ],
)
def test_another_model_type_is_refused_with_the_supported(
    name: str, architecture: str | None, write_config: Any
) -> None:
    message = refusal(write_config(model_type=name, architectures=[architecture]))
    assert repr(name) in message
    assert SUPPORTED in message


@pytest.mark.parametrize(
    "architectures", [["LlamaForSequenceClassification"], ["Qwen2ForCausalLM"], [], "x", [3]]
)
def test_another_architecture_is_refused(architectures: object, write_config: Any) -> None:
    assert "architecture" in refusal(write_config(architectures=architectures))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights are not supported"),
        ({"partial_rotary_factor": 0.75}, "'partial_rotary_factor' is 0.75"),
        ({"rope_interleaved": True}, "'rope_interleaved' is True"),
        ({"per_layer_config": {"1": {}}}, "'per_layer_config'"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 is not divisible by"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "48 is not divisible by"),
        ({"head_dim": 13}, "13; RoPE needs an even one"),
        ({"sliding_window": 64}, "'sliding_window' is 64"),
        ({"layer_types": ["full_attention"]}, "1 entries for 2 layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' contradicts"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention'"),
        ({"layer_types": "full_attention"}, "'layer_types' is 'full_attention'; a list"),
        (family("mistral"), "'sliding_window' is missing"),
        (family("mistral", sliding_window=0), "'sliding_window' is 0"),
        (
            family("mistral", sliding_window=8, layer_types=["full_attention"] * 2),
            "'layer_types' contradicts",
        ),
        (family("qwen2", use_sliding_window=True, sliding_window=8), "'max_window_layers'"),
        (family("qwen2", use_sliding_window=1, sliding_window=8), "'use_sliding_window'"),
        (
            family("qwen3", sliding_window=8, layer_types=["sliding_attention"] * 2),
            "'layer_types' contradicts",
        ),
        (family("smollm3", no_rope_layers=[1]), "1 entries for 2 layers"),
        (family("smollm3", no_rope_layers=[1, 2]), "'no_rope_layers' holds 2"),
        (family("smollm3", no_rope_layers=[1, True]), "'no_rope_layers' holds True"),
        (family("smollm3", no_rope_layers=[1, [1]]), "'no_rope_layers' holds a list"),
        (family("smollm3", no_rope_layer_interval=0), "'no_rope_layer_interval' is 0"),
        (family("qwen2", dual_chunk_attention_config={}), "'chunk_size' is missing"),
        (family("qwen2", dual_chunk_attention_config=CHUNKS | {"local_size": 64}), "below 'chunk"),
        (family("qwen2", dual_chunk_attention_config=CHUNKS | {"x": 1}), "unsupported keys: x"),
        (family("mistral", sliding_window=8, dual_chunk_attention_config=CHUNKS), "sliding win"),
        (
            family(
                "qwen2",
                dual_chunk_attention_config=CHUNKS,
                rope_scaling={"rope_type": "linear", "factor": 2.0},
            ),
            "rope type 'linear'",
        ),
        (family("qwen3_moe"), "'num_experts' is missing"),
        (family("qwen3_moe", **EXPERTS | {"num_experts": 0}), "'num_experts' is 0"),
        (family("qwen3_moe", **EXPERTS | {"num_experts_per_tok": 9}), "9 of 'num_experts' 8"),
        (family("qwen3_moe", **EXPERTS | {"moe_intermediate_size": None}), "'moe_intermediate_siz"),
        (family("qwen3_moe", **EXPERTS | {"norm_topk_prob": 1}), "'norm_topk_prob' is 1"),
        (family("qwen3_moe", **EXPERTS | {"decoder_sparse_step": 0}), "'decoder_sparse_step' is 0"),
        (family("qwen3_moe", **EXPERTS | {"mlp_only_layers": 3}), "'mlp_only_layers' is 3"),
        (family("qwen3_moe", **EXPERTS | {"mlp_only_layers": [True]}), "'mlp_only_layers' holds"),
        (family("qwen3_moe", sliding_window=8, **EXPERTS), "'sliding_window' is 8"),
        (
            family("gemma3_text", hidden_act=None, hidden_activation="gelu"),
            "'hidden_activation' is 'gelu'",
        ),
        (family("gemma3_text", hidden_act="silu"), "'hidden_act' is 'silu'"),
        (family("gemma3_text", query_pre_attn_scalar=0, hidden_act=None), "'query_pre_attn_scal"),
        (family("gemma3_text", hidden_act=None, final_logit_softcapping=30.0), "'final_logit_soft"),
        (family("gemma3_text", hidden_act=None, attn_logit_softcapping=50.0), "'attn_logit_softc"),
        (family("gemma3_text", hidden_act=None, use_bidirectional_attention=True), "bidirection"),
        (family("gemma3_text", hidden_act=None, sliding_window_pattern=0), "'sliding_window_patt"),
        (family("gemma3_text", hidden_act=None, rope_local_base_freq=0), "'rope_local_base_freq'"),
        (
            family("gemma3_text", hidden_act=None, rope_parameters={"rope_type": "default"}),
            "rope_t",
        ),
        (family("gemma3"), "'text_config' is missing"),
        (family("gemma3", text_config=[]), "'text_config' is a list"),
        (family("gemma3", text_config={"model_type": "x"}), "'hidden_size' is missing"),
        (family("gemma3", text_config={}, quantization_config={}), "quantised weights"),
        (family("phi3", partial_rotary_factor=1.5), "'partial_rotary_factor' is [1.5]"),
        (family("phi3", partial_rotary_factor=0.01), "the head dimension is 0 of 12"),
        (family("phi3", partial_rotary_factor=0.6), "the head dimension is 7 of 12"),
        (family("phi3", rope_scaling={"type": "yarn", "factor": 2.0}), "rope type 'yarn'"),
        (
            family("phi3", rope_scaling=LONGROPE | {"short_factor": [1.0]}),
            "1 numbers and 'long_factor' 6",
        ),
        (family("phi3", rope_scaling=LONGROPE, head_dim=16), "6 factors for 8 pairs"),
        (family("phi3", rope_scaling=LONGROPE | {"long_factor": "x"}), "'long_factor' is 'x'"),
        (family("phi3", rope_scaling=LONGROPE | {"short_factor": [0] * 6}), "'short_factor' is 0"),
        (family("phi3", rope_scaling=LONGROPE | {"short_factor": [10**400]}), "'short_factor' is"),
        (family("phi3", rope_scaling=LONGROPE | {"short_mscale": 1.2}), "short_mscale"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_unsupported_keys(keys: dict[str, object], words: str, write_config: Any) -> None:
    assert words in refusal(write_config(**keys))


def windows(folder: Path) -> list[int | None]:
    return [layer.window for layer in read_config(folder).layers]


def test_windows(write_config: Any) -> None:
    types = ["sliding_attention", "full_attention"]
    on = {"use_sliding_window": True, "sliding_window": 8}
    assert windows(write_config(**family("mistral", sliding_window=8))) == [8, 8]
    assert windows(write_config(**family("mistral", sliding_window=None))) == [None, None]
    assert windows(write_config(**family("qwen2", sliding_window=8))) == [None, None]
    assert windows(write_config(**family("qwen2", max_window_layers=1, **on))) == [None, 8]
    assert windows(write_config(**family("qwen2", max_window_layers=0, **on))) == [8, 8]
    assert windows(write_config(**family("qwen3", layer_types=types, **on))) == [8, None]
    assert windows(write_config(**family("smollm3", no_rope_layers=[1, 0], **on))) == [None, 8]
    assert windows(write_config(**family("smollm3", layer_types=types, **on))) == [8, None]
    assert windows(write_config(use_sliding_window=False, sliding_window=8)) == [None, None]


def test_layers_without_rope(write_config: Any) -> None:
    def rope(**keys: object) -> list[bool]:
        folder = write_config(**family("smollm3", num_hidden_layers=4, **keys))
        return [layer.rope for layer in read_config(folder).layers]

    assert rope() == [True, True, True, False]
    assert rope(no_rope_layer_interval=2) == [True, False, True, False]
    assert rope(no_rope_layers=[0, 1, 1, 0]) == [False, True, True, False]
    assert rope(no_rope_layers=[1, 0, 0, 0, 1, 1]) == [True, False, False, False]


def test_an_odd_head_dimension_serves_where_nothing_turns(write_config: Any) -> None:
    folder = write_config(**family("smollm3", no_rope_layers=[0, 0], head_dim=13))
    assert read_config(folder).head_dim == 13


def test_biases(write_config: Any) -> None:
    def biases(**keys: object) -> tuple[bool, bool, bool]:
        config = read_config(write_config(**keys))
        return config.qkv_bias, config.output_bias, config.mlp_bias

    both = {"attention_bias": True, "mlp_bias": True}
    assert biases(**both) == (True, True, True)
    assert biases(**family("mistral", sliding_window=None, **both)) == (False, False, False)
    assert biases(**family("qwen2")) == (True, False, False)
    assert biases(**family("qwen3", **both)) == (True, True, False)
    assert biases(**family("smollm3", **both)) == (True, True, True)


def test_what_absent_keys_mean(write_config: Any) -> None:
    absent = ["tie_word_embeddings", "num_key_value_heads", "architectures", "hidden_act"]
    config = read_config(write_config(without=absent))
    assert (config.tie_embeddings, config.kv_heads) == (False, 4)
    assert read_config(write_config(**family("smollm3"), without=absent[:1])).tie_embeddings
    assert read_config(write_config(**family("qwen3"))).head_dim == 128
    assert read_config(write_config(**family("qwen2"), head_dim=None)).head_dim == 12


def test_dual_chunk_attention(write_config: Any) -> None:
    ignored = {"sparse_attention_enabled": True, "sparse_attention_config": {}}
    folder = write_config(**family("qwen2", dual_chunk_attention_config=CHUNKS | ignored))
    config = read_config(folder)
    assert config.max_positions == 128
    assert config.chunks == ChunkConfig(length=56, farthest=64, original_positions=100)
    assert read_config(write_config(**family("qwen2"))).chunks is None


def test_experts(write_config: Any) -> None:
    def layers(**keys: object) -> list[bool]:
        folder = write_config(**family("qwen3_moe", num_hidden_layers=4, **EXPERTS, **keys))
        return [layer.experts for layer in read_config(folder).layers]

    assert layers() == [True] * 4
    assert layers(decoder_sparse_step=2) == [False, True, False, True]
    assert layers(mlp_only_layers=[0, 3, 9]) == [False, True, True, False]
    newer = {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    experts = read_config(write_config(**family("qwen3_moe", **newer))).experts
    assert experts == ExpertsConfig(count=8, per_token=2, intermediate_size=16, normalised=False)


def test_longrope_is_fixed_by_the_length_of_the_context(write_config: Any) -> None:
    folder = write_config(**family("phi3", rope_scaling=LONGROPE))

    def factors(ctx_size: int) -> float:
        return read_config(folder, ctx_size=ctx_size).rope.factors[0]

    assert [factors(n) for n in (0, 1, 32, 33, 128)] == [2.0, 1.0, 1.0, 2.0, 2.0]
    assert read_config(folder).max_positions == 128


GEMMA: dict[str, object] = {"hidden_act": None, "num_hidden_layers": 7, "head_dim": 12}


def test_gemma(write_config: Any) -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 500.0, "sliding_window": 8}
    folder = write_config(
        **family("gemma3_text", **GEMMA, **old, rope_scaling={"type": "linear", "factor": 8.0}),
        without=["num_key_value_heads", "tie_word_embeddings"],
    )
    config = read_config(folder)
    assert [layer.window for layer in config.layers] == [8] * 5 + [None, 8]
    assert config.rope == RopeConfig(kind="linear", theta=1e6, factor=8.0)
    assert config.local_rope == RopeConfig(kind="default", theta=500.0)
    assert (config.kv_heads, config.tie_embeddings) == (4, True)
    assert config.embedding_scale == 48**0.5
    assert config.query_scale == (12 / 256) ** 0.5


def test_the_text_part_of_a_model_that_also_sees(write_config: Any, plain_config: Any) -> None:
    text = plain_config | GEMMA | {"model_type": "gemma3_text", "rope_theta": 1e6}
    text.pop("architectures")
    plain = read_config(write_config(**text, architectures=["Gemma3ForCausalLM"]))
    keys = {"vision_config": {"hidden_size": 3}, "text_config": text, "tie_word_embeddings": True}
    folder = write_config(**family("gemma3", **keys), without=list(plain_config)[2:-1])
    config = read_config(folder)
    assert config.tie_embeddings
    assert replace(config, family="gemma3_text", tie_embeddings=False) == plain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"[1, 2]", "holds a list"),
        (b"null", "holds null"),
        (b'"text"', "holds a string"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
    ids=[
        "empty",
        "cut",
        "html",
        "list",
        "null",
        "string",
        "latin1",
        "utf16",
        "deep",
        "huge",
        "lfs",
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert words in refusal(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path)
    (tmp_path / "config.json").mkdir()
    assert "no such file" in refusal(tmp_path)


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path, plain_config: Any) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(plain_config).encode())
    assert read_config(tmp_path).family == "llama"


REAL = {
    "Llama-3.1-8B-Instruct": ("llama", 131072, 128, False, "llama3"),
    "Llama-3.2-1B": ("llama", 131072, 64, True, "llama3"),
    "Qwen2.5-0.5B-Instruct": ("qwen2", 32768, 64, True, "default"),
    "Qwen2.5-1.5B-Instruct": ("qwen2", 32768, 128, True, "default"),
    "Qwen3-30B-A3B": ("qwen3_moe", 40960, 128, False, "default"),
    "Qwen3-4B": ("qwen3", 40960, 128, True, "default"),
    "SmolLM2-135M-Instruct": ("llama", 8192, 64, True, "default"),
    "SmolLM3-3B": ("smollm3", 65536, 128, True, "default"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_configurations(name: str, material: Path, tmp_path: Path) -> None:
    source = material / "configs" / f"{name}.json"
    (tmp_path / "config.json").write_bytes(source.read_bytes())
    config = read_config(tmp_path)
    found = (
        config.family,
        config.max_positions,
        config.head_dim,
        config.tie_embeddings,
        config.rope.kind,
    )
    assert found == REAL[name]
