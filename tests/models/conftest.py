"""Tiny random checkpoints made by transformers, and a cache so plain that it can be believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retrolocal.models import ModelConfig
from retrolocal.models.attention import LayerCache

Overrides = dict[str, Any]

BASE: Overrides = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


class NaiveCache:
    """Everything is kept; every query is a masked softmax over all of it, in float64."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.asked: list[int] = []

    @property
    def tokens(self) -> int:
        return sum(k.shape[1] for k in self.keys)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        assert positions.tolist() == list(range(self.tokens, self.tokens + k.shape[1]))
        assert q.dtype == k.dtype == v.dtype
        self.keys.append(k.clone())
        self.values.append(v.clone())
        self.asked.append(q.shape[1])
        groups = q.shape[0] // k.shape[0]
        keys, values = (
            torch.cat(parts, dim=1).double().repeat_interleave(groups, dim=0)
            for parts in (self.keys, self.values)
        )
        scores = q.double() @ keys.transpose(1, 2) * q.shape[2] ** -0.5
        ages = positions[len(positions) - q.shape[1] :, None] - torch.arange(self.tokens)
        hidden = (ages < 0) if self.window is None else (ages < 0) | (ages >= self.window)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        return (weights @ values).to(q.dtype)


CacheFactory = Callable[[ModelConfig], Sequence[LayerCache]]


@pytest.fixture
def make_caches() -> CacheFactory:
    """One cache per layer of a configuration."""
    return lambda config: [NaiveCache(layer.window) for layer in config.layers]


@dataclass
class Checkpoint:
    """A folder with config.json and float32 safetensors, and the model that wrote it."""

    folder: Path
    model: Any

    def logits(self, token_ids: Tensor) -> Tensor:
        """What transformers answers for [T] tokens: [T, vocab]."""
        with torch.no_grad():
            answer: Tensor = self.model(token_ids[None]).logits[0]
        return answer

    def edit(self, **keys: object) -> None:
        """Sets keys of config.json; None removes one."""
        path = self.folder / "config.json"
        content = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


CheckpointFactory = Callable[..., Checkpoint]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> CheckpointFactory:
    """`make_checkpoint(family, **config)` writes a checkpoint with every parameter random."""
    transformers = pytest.importorskip("transformers")

    def make(family: str, **overrides: object) -> Checkpoint:
        torch.manual_seed(0)
        settings = BASE | overrides
        config = transformers.AutoConfig.for_model(family, **settings)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model = model.float().eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.rand_like(parameter) - 0.5
                parameter.data = noise + (1.0 if "norm" in name else 0.0)
        model.save_pretrained(tmp_path, safe_serialization=True)
        return Checkpoint(tmp_path, model)

    return make


@pytest.fixture
def plain_config() -> Overrides:
    """A small valid config.json of the llama family."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


ConfigWriter = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path, plain_config: Overrides) -> ConfigWriter:
    """Writes the plain configuration with keys changed or `without` some; answers the folder."""

    def write(*, without: Sequence[str] = (), **changes: object) -> Path:
        content = {k: v for k, v in (plain_config | changes).items() if k not in without}
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path

    return write
