"""Structured keys, values and queries: what attention in real decoders looks like, seeded.

iid noise has nothing to cluster and untrained weights attend to everything; both make any index
look hopeless. What published measurements agree on is built in instead: constant offsets and a
few outlier channels in the keys (KIVI, arXiv 2402.02750; KVQuant, arXiv 2401.18079), content in
the low-frequency RoPE pairs, attention sinks with tiny values, also beyond the first token
(KVSink, arXiv 2508.04257), token identities after Zipf's law, topics that last and come back,
queries from another cone than the keys (RetrievalAttention, arXiv 2409.10516), planted needles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.rope import apply_rope, default_frequencies, rotations

VOCABULARY = 4096
TOPICS = 64
SINKS = (0, 14)
ROPE_THETA = 10_000_000.0
LENGTH = 1.5
"""Length of a query of gain 1, in units of the square root of the head dimension."""
CONE = 0.35
"""How much of a query is the direction that all queries share."""
LOGIT_DEVIATION = 2.0
"""Standard deviation of the logits of a query of gain 1."""
PASSAGE = 1 / 300
"""How likely a token is to begin a new passage."""
PIECE = 8192
"""Positions whose queries are made at once."""


@dataclass(frozen=True, slots=True)
class AttentionData:
    """Queries q [S, Hq, D] of S steps over keys and values k, v [Hkv, N, D], after RoPE."""

    q: Tensor
    k: Tensor
    v: Tensor

    def to(self, device: torch.device) -> AttentionData:
        return AttentionData(*(rows.to(device) for rows in (self.q, self.k, self.v)))


def structured_data(
    *,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    steps: int,
    gain: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> AttentionData:
    """Steps that each ask about a token somewhere in the context, after its end.

    `gain` is how sharp attention is: 1 diffuse, 2 middle, 3 sharp (see `PERFORMANCE.md`).
    """
    generator = torch.Generator().manual_seed(seed)
    shape = Shape(tokens, q_heads, kv_heads, head_dim)
    q = torch.empty(steps, q_heads, head_dim, dtype=dtype)
    k, v = (torch.empty(kv_heads, tokens, head_dim, dtype=dtype) for _ in range(2))
    words, topics = _text(tokens, generator)
    for head in range(kv_heads):
        made = _Head(shape, words, topics, gain, generator)
        k[head], v[head] = made.keys.to(dtype), made.values.to(dtype)
        for step in range(steps):
            about = torch.randint(0, tokens, (1,), generator=generator)
            q[step, shape.group(head)] = made.ask(about, tokens + step)[0].to(dtype)
    return AttentionData(q, k, v)


def structured_prompt(
    *,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    gain: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> AttentionData:
    """A prompt: a passage asks about an earlier one, token by token.

    So neighbours ask about neighbours, as where a text comes back to something. q [N, Hq, D] has
    one query per token.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = Shape(tokens, q_heads, kv_heads, head_dim)
    q = torch.empty(tokens, q_heads, head_dim, dtype=dtype)
    k, v = (torch.empty(kv_heads, tokens, head_dim, dtype=dtype) for _ in range(2))
    words, topics = _text(tokens, generator)
    for head in range(kv_heads):
        made = _Head(shape, words, topics, gain, generator)
        k[head], v[head] = made.keys.to(dtype), made.values.to(dtype)
        earlier = _earlier(tokens, generator)
        for first in range(0, tokens, PIECE):
            rows = slice(first, first + PIECE)
            q[rows, shape.group(head)] = made.ask(earlier[rows], first).to(dtype)
    return AttentionData(q, k, v)


def structured_answer(
    *,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    steps: int,
    gain: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> AttentionData:
    """Decode steps after a text: each asks about the token after the one that the last asked about.

    So consecutive steps need much the same, as where an answer follows its text; as in
    `structured_prompt` passages end, and every KV head goes to places of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = Shape(tokens, q_heads, kv_heads, head_dim)
    q = torch.empty(steps, q_heads, head_dim, dtype=dtype)
    k, v = (torch.empty(kv_heads, tokens, head_dim, dtype=dtype) for _ in range(2))
    words, topics = _text(tokens, generator)
    for head in range(kv_heads):
        made = _Head(shape, words, topics, gain, generator)
        k[head], v[head] = made.keys.to(dtype), made.values.to(dtype)
        about = _earlier(tokens + steps, generator)[tokens:] % tokens
        q[:, shape.group(head)] = made.ask(about, tokens).to(dtype)
    return AttentionData(q, k, v)


@dataclass(frozen=True, slots=True)
class Shape:
    tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int

    def group(self, head: int) -> slice:
        """The query heads that share KV head `head`."""
        size = self.q_heads // self.kv_heads
        return slice(head * size, (head + 1) * size)


class _Head:
    """Keys and values of one KV head, float32 [N, D] after RoPE, and queries over them."""

    def __init__(
        self,
        shape: Shape,
        words: Tensor,
        topics: Tensor,
        gain: float,
        generator: torch.Generator,
    ) -> None:
        self._group, self._gain = shape.q_heads // shape.kv_heads, gain
        self._generator, self._frequencies = (
            generator,
            default_frequencies(shape.head_dim, ROPE_THETA),
        )
        self._content, self.values = _content(words, topics, shape.head_dim, generator)
        self._cone = _cone(shape.head_dim, generator)
        keys = self._content + _offsets(shape.head_dim, generator)
        for sink in SINKS:
            if sink < shape.tokens:
                keys[sink] = _sink_logit(shape.tokens, gain) / (CONE * LENGTH * gain) * self._cone
                self.values[sink] *= 0.02
        self.keys = self._turned(keys[None], torch.arange(shape.tokens))[0]

    def ask(self, about: Tensor, first: int) -> Tensor:
        """Queries [T, G, D] at positions first, first + 1 ... about the tokens about [T]."""
        dim = self._content.shape[1]
        aim = torch.nn.functional.normalize(self._content[about], dim=1)[:, None]
        noise = _normal(self._generator, len(about), self._group, dim) / math.sqrt(dim)
        asked = 0.8 * aim + 0.8 * noise + CONE * self._cone
        asked *= math.sqrt(dim) * LENGTH * self._gain
        positions = torch.arange(first, first + len(about))
        return self._turned(asked.transpose(0, 1), positions).transpose(0, 1)

    def _turned(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Rows [H, T, D] after RoPE."""
        cos, sin = rotations(
            positions, self._frequencies, attention_factor=1.0, dtype=torch.float32
        )
        return apply_rope(rows, cos, sin)


def _cone(dim: int, generator: torch.Generator) -> Tensor:
    """The direction that all queries share, in the dimensions that hardly turn with position."""
    cone = _normal(generator, dim) * (torch.arange(dim) % (dim // 2) >= 3 * dim // 8)
    return torch.nn.functional.normalize(cone, dim=0)


def _sink_logit(tokens: int, gain: float) -> float:
    """About the log of the mass of all other tokens, so that a sink takes a good part of it."""
    deviation, log_tokens = LOGIT_DEVIATION * gain, math.log(tokens)
    if deviation**2 <= 2 * log_tokens:
        return log_tokens + deviation**2 / 2 - 1
    return deviation * math.sqrt(2 * log_tokens) - 1


def _text(tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Word and topic of every token, int64 [N]: Zipf's law, topics of a few hundred tokens."""
    weights = 1.0 / torch.arange(1, VOCABULARY + 1).double()
    words = torch.multinomial(weights, tokens, replacement=True, generator=generator)
    turns = torch.rand(tokens, generator=generator) < PASSAGE
    passage = turns.long().cumsum(0)
    of_passage = torch.randint(0, TOPICS, (int(passage[-1]) + 1,), generator=generator)
    return words, of_passage[passage]


def _earlier(tokens: int, generator: torch.Generator) -> Tensor:
    """For every token the one it comes back to, int64 [N]: passages return to random places."""
    turns = torch.rand(tokens, generator=generator) < PASSAGE
    turns[0] = True
    starts = turns.nonzero()[:, 0]
    back = (torch.rand(len(starts), generator=generator).double() * starts).long()
    return torch.arange(tokens) - (starts - back)[turns.long().cumsum(0) - 1]


def _content(
    words: Tensor, topics: Tensor, dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Keys before offsets and RoPE, and values, float32 [N, dim] each."""
    tokens = words.shape[0]
    of_word = _normal(generator, VOCABULARY, dim)
    of_topic = _normal(generator, TOPICS, dim)
    drift = _drift(tokens, dim, generator)
    own = _normal(generator, tokens, dim)
    keys = 0.65 * of_word[words] + 0.6 * of_topic[topics] + 0.6 * drift + 0.35 * own
    half = dim // 2
    # Content sits in the low frequencies, which turn little over a passage.
    amplitude = torch.linspace(0.25, 1.25, half).repeat(2)
    value_of_word = _normal(generator, VOCABULARY, dim)
    value_of_topic = _normal(generator, TOPICS, dim)
    values = 0.7 * value_of_word[words] + 0.4 * value_of_topic[topics]
    values += 0.6 * _normal(generator, tokens, dim)
    return keys * amplitude, values


def _drift(tokens: int, dim: int, generator: torch.Generator) -> Tensor:
    """What neighbours share: an AR(1) process along the text, kept every 8 tokens."""
    knots = -(-tokens // 8) + 1
    state, rows = _normal(generator, dim), []
    for noise in _normal(generator, knots, dim).unbind(0):
        state = 0.7 * state + math.sqrt(1 - 0.7**2) * noise
        rows.append(state)
    return torch.stack(rows).repeat_interleave(8, dim=0)[:tokens]


def _offsets(dim: int, generator: torch.Generator) -> Tensor:
    """Constant part of every key: small everywhere, large in a few channels."""
    offsets = 0.5 * _normal(generator, dim)
    outliers = torch.randperm(dim // 2, generator=generator)[-max(1, dim // 32) :] + dim // 2
    offsets[outliers] *= 8.0
    return offsets


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)
