"""Dual chunk attention: the whole decoder against the definition, in float64, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from retrolocal.cache import DenseCache
from retrolocal.config import WaveConfig
from retrolocal.models import ModelConfig, read_config
from retrolocal.models.decoder import Decoder
from retrolocal.models.weights import load_decoder
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.lengths import Lengths

TOKENS = 40
CUTS = ([40], [7, 1, 13, 2, 9, 8], [3] + [1] * 37, [33] + [1] * 7)
CHUNKS = {"chunk_size": 9, "local_size": 2, "original_max_position_embeddings": 9}
EVERYTHING = WaveConfig(
    budget=1.0,
    segment_tokens=4,
    growth_tokens=3,
    window_tokens=2,
    sink_tokens=1,
    cluster_tokens=2,
    prefill_descend=1.0,
    prefill_cap=1.0,
    index_type="f32",
)


def caches_of(kind: str, config: ModelConfig) -> list[Any]:
    assert config.chunks is not None
    length = config.chunks.length

    def cache() -> DenseCache | WaveCache:
        if kind == "dense":
            return DenseCache(chunk_tokens=length)
        if kind == "wave":
            return WaveCache(EVERYTHING, chunk_tokens=length)
        lengths = Lengths(prefill=lambda: 0)
        return WaveCache(EVERYTHING, lengths=lengths, chunk_tokens=length)

    return [cache() for _ in config.layers]


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """One vector [D] after RoPE, dimension i turning with i + D/2."""
    half = x.shape[0] // 2
    angles = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = x[:half], x[half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin))


def attention(q: Tensor, k: Tensor, v: Tensor, section: dict[str, int], theta: float) -> Tensor:
    """q [Hq, T, D], k and v [Hkv, T, D] before RoPE: the definition, one pair after another."""
    size, length = section["chunk_size"], section["chunk_size"] - section["local_size"]
    original = section.get("original_max_position_embeddings")
    out = torch.zeros_like(q)
    for head in range(q.shape[0]):
        kv = head // (q.shape[0] // k.shape[0])
        for i in range(q.shape[1]):
            temper = 1.0
            if original is not None:
                temper = max(1.0, 0.1 * math.log((i + 1) / original) + 1.0) ** 2
            logits = []
            for j in range(i + 1):
                apart = i // length - j // length
                if apart == 0:
                    at = i % length
                elif apart == 1:
                    at = min(i % length + length, size)
                else:
                    at = size
                key = turned(k[kv, j], j % length, theta)
                logits.append(turned(q[head, i], at, theta) @ key)
            shares = torch.softmax(torch.stack(logits) * temper / math.sqrt(q.shape[2]), dim=0)
            out[head, i] = shares @ v[kv, : i + 1]
    return out


def reference(decoder: Decoder, ids: Tensor, section: dict[str, int], theta: float) -> Tensor:
    """Logits float64 [T, vocab] of a Qwen2 decoder."""
    weights = {name: value.double() for name, value in decoder.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        eps = decoder.config.rms_norm_eps
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weights[name]

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    x = weights["embedding.weight"][ids]
    for layer in range(len(decoder.config.layers)):
        at = f"layers.{layer}"
        y = norm(x, f"{at}.attention_norm")
        q, k, v = (
            linear(y, f"{at}.attention.{name}")
            .view(len(ids), -1, decoder.config.head_dim)
            .transpose(0, 1)
            for name in ("query", "key", "value")
        )
        seen = attention(q, k, v, section, theta).transpose(0, 1).reshape(len(ids), -1)
        x = x + linear(seen, f"{at}.attention.output")
        y = norm(x, f"{at}.mlp_norm")
        gate = linear(y, f"{at}.mlp.gate")
        x = x + linear(gate * torch.sigmoid(gate) * linear(y, f"{at}.mlp.up"), f"{at}.mlp.down")
    return linear(norm(x, "norm"), "head")


def prompt() -> Tensor:
    return torch.randint(131, (TOKENS,), generator=torch.Generator().manual_seed(1))


def run(decoder: Decoder, caches: Any, token_ids: Tensor, cuts: list[int]) -> Tensor:
    pieces, start = [], 0
    for length in cuts:
        positions = torch.arange(start, start + length)
        pieces.append(decoder(token_ids[start : start + length], positions, caches, length))
        start += length
    assert start == len(token_ids)
    return torch.cat(pieces)


def opened(checkpoint: Any, section: dict[str, int]) -> Decoder:
    checkpoint.edit(dual_chunk_attention_config=section)
    config = read_config(checkpoint.folder)
    return load_decoder(checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", ["dense", "wave", "wave prefill"])
@pytest.mark.parametrize(
    "section",
    [CHUNKS, {"chunk_size": 16, "local_size": 0}, {"chunk_size": 30, "local_size": 13}],
    ids=["six chunks", "no local", "three chunks"],
)
def test_logits_are_those_of_the_definition(
    kind: str, section: dict[str, int], make_checkpoint: Any
) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    decoder = opened(make_checkpoint("qwen2", rope_parameters=rope), section)
    expected = reference(decoder, prompt(), section, 10000.0).float()
    assert expected.std() > 0.5
    for cuts in CUTS:
        logits = run(decoder, caches_of(kind, decoder.config), prompt(), cuts)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_only_what_is_farther_than_the_chunk_size_differs_from_plain_rope(
    make_checkpoint: Any,
) -> None:
    checkpoint = make_checkpoint("qwen2")
    decoder = opened(checkpoint, CHUNKS)
    logits = run(decoder, caches_of("dense", decoder.config), prompt(), [TOKENS])
    plain = checkpoint.logits(prompt())
    same = CHUNKS["chunk_size"]
    torch.testing.assert_close(logits[:same], plain[:same], atol=1e-4, rtol=0)
    assert (logits[same:] - plain[same:]).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("kind", ["dense", "wave", "wave prefill"])
def test_within_one_chunk_it_is_plain_rope(kind: str, make_checkpoint: Any) -> None:
    checkpoint = make_checkpoint("qwen2", tie_word_embeddings=True)
    section = {"chunk_size": 48, "local_size": 8, "original_max_position_embeddings": 48}
    decoder = opened(checkpoint, section)
    for cuts in CUTS:
        logits = run(decoder, caches_of(kind, decoder.config), prompt(), cuts)
        torch.testing.assert_close(logits, checkpoint.logits(prompt()), atol=1e-4, rtol=0)
