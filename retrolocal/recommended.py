"""Models worth trying, by what a machine must hold for them. Data and arithmetic only.

For a long text the bytes of keys and values per token decide more than the parameters do: a text of
a million tokens takes 56 GiB in bfloat16 from Qwen2.5-7B and 128 GiB from Llama-3.1-8B. Shapes are
those of the models' config.json; tests compare them where those files are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

USUAL_TOKENS = 131_072
"""A long book: what a default is chosen for."""
STORED: dict[str, float] = {"bf16": 1.04, "int8": 0.54, "int4": 0.32}
"""Bytes of store and int8 index, over those of keys and values in bfloat16 (PERFORMANCE.md: 28.4
and 15.8 of 56 GiB, and 1.8 for the index)."""
WORKSPACE = 1 << 30
"""Activations of a piece of a prompt, kernels, the program itself; rounded up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One model and what it takes."""

    model: str
    """Its name on the Hub."""
    what: str
    """A few words for a list."""
    parameters: int
    layers: int
    """Those whose keys and values grow with the text."""
    kv_heads: int
    head_dim: int
    max_tokens: int
    """Positions that the model serves."""
    licence: str
    gated: bool = False
    """Whether its terms have to be accepted on the Hub."""

    @property
    def weight_bytes(self) -> int:
        """In bfloat16: of the download, and in memory."""
        return 2 * self.parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in bfloat16, all layers."""
        return kv_bytes(self.layers, self.kv_heads, self.head_dim)

    def context_bytes(self, tokens: int, store_type: str = "int8") -> int:
        """Keys, values and index of a text of `tokens`."""
        return int(tokens * self.kv_bytes_per_token * STORED[store_type])

    def longest_text(self, memory_bytes: int, store_type: str = "int8") -> int:
        """Tokens that fit into `memory_bytes` beside the weights; 0 when these do not fit."""
        left = memory_bytes - self.weight_bytes - WORKSPACE
        fitting = int(left / (self.kv_bytes_per_token * STORED[store_type]))
        return max(0, min(self.max_tokens, fitting))


def kv_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of one token's keys and values in bfloat16."""
    return layers * kv_heads * head_dim * 2 * 2


RECOMMENDED = (
    Recommendation(
        model="Qwen/Qwen2.5-14B-Instruct-1M",
        what="answers best",
        parameters=14_770_033_664,
        layers=48,
        kv_heads=8,
        head_dim=128,
        max_tokens=1_010_000,
        licence="Apache-2.0",
    ),
    Recommendation(
        model="Qwen/Qwen2.5-7B-Instruct-1M",
        what="long texts in little memory",
        parameters=7_615_616_512,
        layers=28,
        kv_heads=4,
        head_dim=128,
        max_tokens=1_010_000,
        licence="Apache-2.0",
    ),
    Recommendation(
        model="Qwen/Qwen3-4B-Instruct-2507",
        what="answers well for its size",
        parameters=4_022_468_096,
        layers=36,
        kv_heads=8,
        head_dim=128,
        max_tokens=262_144,
        licence="Apache-2.0",
    ),
    Recommendation(
        model="HuggingFaceTB/SmolLM3-3B",
        what="small, fully open",
        parameters=3_075_098_624,
        layers=36,
        kv_heads=4,
        head_dim=128,
        max_tokens=65_536,
        licence="Apache-2.0",
    ),
    Recommendation(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        what="quick on a laptop",
        parameters=1_543_714_304,
        layers=28,
        kv_heads=2,
        head_dim=128,
        max_tokens=32_768,
        licence="Apache-2.0",
    ),
    Recommendation(
        model="meta-llama/Llama-3.2-1B-Instruct",
        what="quick, for long texts",
        parameters=1_235_814_400,
        layers=16,
        kv_heads=8,
        head_dim=64,
        max_tokens=131_072,
        licence="Llama 3.2",
        gated=True,
    ),
    Recommendation(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        what="the smallest that talks",
        parameters=494_032_768,
        layers=24,
        kv_heads=2,
        head_dim=64,
        max_tokens=32_768,
        licence="Apache-2.0",
    ),
)
"""The best answers first."""


def that_fit(
    memory_bytes: int,
    *,
    tokens: int = USUAL_TOKENS,
    gpu_bytes: int | None = None,
    store_type: str = "int8",
) -> Iterator[Recommendation]:
    """Recommendations that this memory holds with a text of `tokens`, the best first.

    A model with fewer positions than `tokens` is asked for as many as it has. With `gpu_bytes` the
    weights lie there and `memory_bytes` holds the text alone.
    """
    for one in RECOMMENDED:
        text = one.context_bytes(min(tokens, one.max_tokens), store_type)
        base = one.weight_bytes + WORKSPACE
        if gpu_bytes is None:
            fits = base + text <= memory_bytes
        else:
            fits = base <= gpu_bytes and text <= memory_bytes
        if fits:
            yield one
