"""Frequencies of every rope type, to the last bit, and the keys that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retrolocal.errors import ConfigError
from retrolocal.models import read_config
from retrolocal.models.decoder import inverse_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

RULES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "linear-whole-number": {"rope_type": "linear", "factor": 4},
    "llama3": LLAMA3,
    "llama3-32": LLAMA3 | {"factor": 32.0},
    "llama3-no-original": {k: v for k, v in LLAMA3.items() if not k.startswith("original")},
    "yarn": YARN,
    "yarn-no-original": {"rope_type": "yarn", "factor": 4.0},
    "yarn-no-factor": YARN | {"factor": None},
    "yarn-attention-factor": YARN | {"attention_factor": 1.7},
    "yarn-mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.0, "factor": 40.0},
    "yarn-mscale-alone": YARN | {"mscale": 0.707},
    "yarn-mscale-zero": YARN | {"mscale": 1.0, "mscale_all_dim": 0.0},
    "yarn-betas": YARN | {"beta_fast": 16, "beta_slow": 2.5},
    "yarn-not-truncated": YARN | {"truncate": False},
    "yarn-truncated": YARN | {"truncate": True},
    "yarn-short": YARN | {"original_max_position_embeddings": 64},
    "yarn-factor-1": YARN | {"factor": 1.0},
}


@pytest.mark.parametrize("theta", [10000.0, 1_000_000], ids=["theta-1e4", "theta-1e6"])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("rule", RULES)
def test_frequencies_are_those_of_transformers(
    rule: str, head_dim: int, theta: float, write_config: Any
) -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    keys = {"head_dim": head_dim, "max_position_embeddings": 131072}
    parameters = RULES[rule] | {"rope_theta": theta}
    theirs = llama.LlamaConfig(**keys, rope_parameters=dict(parameters))
    compute = utils.ROPE_INIT_FUNCTIONS.get(
        RULES[rule]["rope_type"], llama.LlamaRotaryEmbedding.compute_default_rope_parameters
    )
    expected, factor = compute(theirs)
    folders = (
        {"rope_parameters": parameters},
        {"rope_parameters": None, "rope_scaling": RULES[rule], "rope_theta": theta},
    )
    for spelling in folders:
        rope = read_config(write_config(**keys, **spelling)).rope
        assert torch.equal(inverse_frequencies(rope, head_dim), expected)
        assert rope.attention_factor == factor


def test_both_spellings_of_the_type_are_one(write_config: Any) -> None:
    old = {k: v for k, v in YARN.items() if k != "rope_type"} | {"type": "yarn"}
    one = read_config(write_config(rope_scaling=old))
    assert one == read_config(write_config(rope_scaling=YARN))
    assert one == read_config(write_config(rope_scaling=YARN | old))


def test_an_absent_rule_is_the_default_of_the_family(write_config: Any) -> None:
    assert read_config(write_config(without=["rope_theta"])).rope.theta == 10000.0
    folder = write_config(
        without=["rope_theta"], model_type="smollm3", architectures=["SmolLM3ForCausalLM"]
    )
    assert read_config(folder).rope.theta == 2_000_000.0


@pytest.mark.parametrize(
    ("declared", "rule", "positions"),
    [
        (32768, YARN, 131072),
        (40960, YARN, 131072),
        (262144, YARN, 262144),
        (32768, {"rope_type": "yarn", "factor": 4.0}, 32768),
        (131072, LLAMA3, 131072),
        (16384, {"rope_type": "linear", "factor": 4.0}, 16384),
    ],
)
def test_positions_served(
    declared: int, rule: dict[str, Any], positions: int, write_config: Any
) -> None:
    folder = write_config(max_position_embeddings=declared, rope_scaling=rule)
    assert read_config(folder).max_positions == positions


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, ["'dynamic'", "keys of earlier tokens"]),
        ({"type": "longrope", "long_factor": []}, ["'longrope'", "keys of earlier tokens"]),
        ({"type": "su"}, ["'su'", "keys of earlier tokens"]),
        ({"type": "mrope"}, ["'mrope'", "default, linear, llama3, yarn"]),
        ({"type": 3}, ["'type'", "a string"]),
        ({"type": "yarn", "rope_type": "linear"}, ["'yarn'", "'linear'"]),
        ({"type": "linear"}, ["'factor'", "missing"]),
        ({"type": "linear", "factor": 0.5}, ["'factor'", "0.5"]),
        ({"type": "linear", "factor": "2"}, ["'factor'", "'2'"]),
        ({"type": "linear", "factor": True}, ["'factor'", "True"]),
        ({"type": "linear", "factor": 2.0, "surprise": 1}, ["surprise"]),
        ({"type": "default", "mrope_section": [1]}, ["mrope_section"]),
        ({"type": "default", "partial_rotary_factor": 0.5}, ["'partial_rotary_factor'", "0.5"]),
        ({"full_attention": {"rope_type": "default"}}, ["full_attention"]),
        (LLAMA3 | {"high_freq_factor": 1.0}, ["'high_freq_factor'", "above 1"]),
        (LLAMA3 | {"low_freq_factor": 0}, ["'low_freq_factor'"]),
        (LLAMA3 | {"original_max_position_embeddings": 8192.0}, ["'original_max_position"]),
        (YARN | {"beta_fast": 0.5}, ["'beta_fast'", "'beta_slow'"]),
        (YARN | {"truncate": 1}, ["'truncate'", "true or false"]),
        (YARN | {"attention_factor": -1.0}, ["'attention_factor'", "-1.0"]),
        (YARN | {"mscale": float("nan")}, ["'mscale'", "nan"]),
        ({"type": "yarn", "original_max_position_embeddings": 64}, ["'factor'", "missing"]),
        (["yarn"], ["'rope_scaling'", "an object"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "rule",
)
def test_refused(rule: Any, words: list[str], write_config: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(write_config(rope_scaling=rule))
    message = str(caught.value)
    assert "\n" not in message
    assert "config.json" in message
    for word in words:
        assert word in message


def test_harmless_keys_are_let_be(write_config: Any) -> None:
    read_config(write_config(rope_scaling=YARN | {"finetuned": True, "mscale": None}))
    read_config(write_config(rope_scaling={"type": "default", "partial_rotary_factor": 1.0}))
    read_config(write_config(rope_scaling={}, rope_parameters={"rope_type": "default"}))


def test_two_rules_that_differ_are_refused(write_config: Any) -> None:
    folder = write_config(rope_scaling=YARN, rope_parameters={"rope_type": "default"})
    with pytest.raises(ConfigError, match="'rope_scaling' and 'rope_parameters' differ"):
        read_config(folder)
    read_config(write_config(rope_scaling=YARN, rope_parameters=YARN))


@pytest.mark.parametrize("theta", [0, 1, -3.5, "1e6", float("inf"), 10**400, True, [10000.0]])
def test_a_theta_that_is_no_base_is_refused(theta: Any, write_config: Any) -> None:
    with pytest.raises(ConfigError, match="'rope_theta'"):
        read_config(write_config(rope_theta=theta))
