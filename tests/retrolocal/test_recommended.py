from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrolocal.models.config import read_config
from retrolocal.recommended import RECOMMENDED, Recommendation, kv_bytes, that_fit

GIB = 1 << 30
SAME_SHAPE = {
    "Qwen/Qwen2.5-7B-Instruct-1M": "Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen3-4B",
    "HuggingFaceTB/SmolLM3-3B": "SmolLM3-3B",
    "Qwen/Qwen2.5-1.5B-Instruct": "Qwen2.5-1.5B-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct": "Llama-3.2-1B",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5-0.5B-Instruct",
}


def by_name(name: str) -> Recommendation:
    return next(one for one in RECOMMENDED if one.model == name)


@pytest.mark.parametrize("name", SAME_SHAPE)
def test_figures_are_those_of_the_models(name: str, material: Path, tmp_path: Path) -> None:
    import torch

    from retrolocal.models.decoder import Decoder

    file = material / "configs" / f"{SAME_SHAPE[name]}.json"
    (tmp_path / "config.json").write_text(json.dumps(json.loads(file.read_text())))
    config, one = read_config(tmp_path), by_name(name)
    growing = sum(layer.window is None for layer in config.layers)
    assert one.kv_bytes_per_token == kv_bytes(growing, config.kv_heads, config.head_dim)
    with torch.device("meta"):
        parameters = sum(value.numel() for value in Decoder(config).parameters())
    assert one.parameters == pytest.approx(parameters, rel=1e-3)
    if name not in ("Qwen/Qwen2.5-7B-Instruct-1M", "Qwen/Qwen3-4B-Instruct-2507"):
        assert one.max_tokens == config.max_positions


def test_bytes_per_token_are_the_published_ones() -> None:
    assert by_name("Qwen/Qwen2.5-7B-Instruct-1M").kv_bytes_per_token == 56 << 10
    assert by_name("Qwen/Qwen2.5-14B-Instruct-1M").kv_bytes_per_token == 192 << 10
    assert by_name("HuggingFaceTB/SmolLM3-3B").kv_bytes_per_token == 72 << 10


@pytest.mark.parametrize(
    ("gib", "best"),
    [
        (2, None),
        (3, "Qwen/Qwen2.5-0.5B-Instruct"),
        (6, "Qwen/Qwen2.5-1.5B-Instruct"),
        (12, "HuggingFaceTB/SmolLM3-3B"),
        (20, "Qwen/Qwen2.5-7B-Instruct-1M"),
        (64, "Qwen/Qwen2.5-14B-Instruct-1M"),
    ],
)
def test_what_memory_holds(gib: int, best: str | None) -> None:
    found = [one for one in that_fit(gib * GIB) if not one.gated]
    assert (found[0].model if found else None) == best
    assert all(one in list(that_fit(2 * gib * GIB)) for one in found), "more memory holds no less"


def test_few_bytes_per_token_win_where_the_text_is_long() -> None:
    names = [one.model for one in that_fit(24 * GIB, tokens=262_144)]
    assert names[0] == "Qwen/Qwen2.5-7B-Instruct-1M"
    assert "Qwen/Qwen3-4B-Instruct-2507" not in names, "half the parameters, 2.6 times the text"


def test_weights_lie_on_the_gpu_and_the_text_in_memory() -> None:
    names = [one.model for one in that_fit(8 * GIB, gpu_bytes=20 * GIB)]
    assert names[0] == "Qwen/Qwen2.5-7B-Instruct-1M"
    assert "Qwen/Qwen2.5-7B-Instruct-1M" not in [one.model for one in that_fit(8 * GIB)]


def test_the_longest_text() -> None:
    seven = by_name("Qwen/Qwen2.5-7B-Instruct-1M")
    assert seven.longest_text(10 * GIB) == 0
    assert seven.longest_text(1000 * GIB) == seven.max_tokens
    some = seven.longest_text(18 * GIB)
    assert 0 < some < seven.max_tokens
    needed = seven.weight_bytes + GIB + seven.context_bytes(some)
    assert needed == pytest.approx(18 * GIB, rel=1e-4)
    assert seven.longest_text(18 * GIB, "bf16") < some < seven.longest_text(18 * GIB, "int4")
