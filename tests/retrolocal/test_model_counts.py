"""What a token goes through, against matrices counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrolocal.errors import ConfigError
from retrolocal.model_counts import layer_elements, matrix_elements, read_share
from retrolocal.models.config import ModelConfig, parse_config
from retrolocal.models.json_reader import JsonReader

HIDDEN, INNER, LAYERS, EXPERT = 64, 96, 4, 32
ATTENTION = HIDDEN * (4 + 2 + 2 + 4) * 16
SHAPE = {
    "vocab_size": 256,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}


def shape(model_type: str, **changed: Any) -> ModelConfig:
    raw = SHAPE | {"model_type": model_type} | changed
    return parse_config(JsonReader(raw, Path("config.json"), ConfigError))


def test_of_a_plain_model() -> None:
    model = shape("qwen3")
    assert matrix_elements(model) == LAYERS * (ATTENTION + 3 * HIDDEN * INNER)
    assert layer_elements(model) == LAYERS * (HIDDEN + INNER)
    assert read_share(model) == 1


def test_of_experts_those_that_a_token_goes_through() -> None:
    """Every second layer has eight, and a token goes through two of them."""
    model = shape(
        "qwen3_moe",
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=EXPERT,
        decoder_sparse_step=2,
    )
    many, plain = 8 * HIDDEN + 2 * 3 * HIDDEN * EXPERT, 3 * HIDDEN * INNER
    assert matrix_elements(model) == LAYERS * ATTENTION + 2 * (many + plain)
    assert layer_elements(model) == LAYERS * HIDDEN + 2 * (2 * EXPERT + INNER)
    idle = 2 * 6 * 3 * HIDDEN * EXPERT
    there = matrix_elements(model) + idle + 256 * HIDDEN
    assert read_share(model) == pytest.approx((there - idle) / there, rel=0.01)


def test_of_a_table_that_is_not_the_head_one_row_is_read() -> None:
    model = shape("qwen3", tie_word_embeddings=False)
    there = matrix_elements(model) + 2 * 256 * HIDDEN
    assert read_share(model) == pytest.approx(1 - 256 * HIDDEN / there, rel=0.01)
