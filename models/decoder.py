"""The decoder: embedding, layers, output matrix, for every supported family.

One sequence, no batch dimension, no autograd. The caller brings one `LayerCache` per layer and
the decoder owns no state between calls. Knows nothing of files, text or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import rope
from ..kernels.rms_norm import rms_norm
from .attention import Attention, LayerCache, Rotation
from .config import LayerConfig, ModelConfig
from .mlp import GatedMlp
from .rope_config import RopeConfig


class Decoder(nn.Module):
    """Token ids in, logits out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, index) for index, layer in enumerate(config.layers)
        )
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.head: nn.Linear | None = None
        if not config.tie_embeddings:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # No buffer: casting the module to bfloat16 must not round the frequencies.
        self._frequencies = inverse_frequencies(config.rope, config.head_dim)
        self._turns = any(layer.rope for layer in config.layers)

    @torch.no_grad()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Sequence[LayerCache],
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Logits float32 [wanted, vocab] of the last `wanted` of T tokens, 0 <= wanted <= T.

        token_ids and positions int64 [T] on the decoder's device; one cache per layer. The last
        layer computes only keys and values for tokens that are not wanted. `on_layer(i)` is called
        before layer i and may raise; the caches before it have then taken the tokens already.
        """
        tokens = token_ids.shape[0]
        assert 0 <= wanted <= tokens, f"{wanted} logits wanted of {tokens} tokens"
        assert len(caches) == len(self.layers), f"{len(caches)} caches, {len(self.layers)} layers"
        hidden = self.embedding(token_ids)
        rotation = self._rotation(positions, hidden.dtype) if self._turns else None
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            if on_layer is not None:
                on_layer(index)
            asking = wanted if index == len(self.layers) - 1 else tokens
            hidden = layer(hidden, rotation, positions, cache, asking)
        hidden = rms_norm(hidden, self.norm, self.config.rms_norm_eps)
        matrix = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(hidden, matrix).float()

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        if self._frequencies.device != positions.device and positions.device.type == "cuda":
            # A captured step must not copy from the host.
            self._frequencies = self._frequencies.to(positions.device)
        factor = self.config.rope.attention_factor
        return rope.rotations(positions, self._frequencies, attention_factor=factor, dtype=dtype)


class DecoderLayer(nn.Module):
    """Attention, then the gated MLP, each on a normalised input and added to the residual."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, index: int) -> None:
        super().__init__()
        self.turns = layer.rope
        self.eps = config.rms_norm_eps
        self.attention_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.attention = Attention(config, index)
        self.mlp_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(
        self,
        hidden: Tensor,
        rotation: Rotation | None,
        positions: Tensor,
        cache: LayerCache,
        asking: int,
    ) -> Tensor:
        """hidden [T, hidden_size]; returns [asking, hidden_size] for the last `asking` tokens."""
        normed = rms_norm(hidden, self.attention_norm, self.eps)
        turned = rotation if self.turns else None
        hidden = hidden[hidden.shape[0] - asking :]
        hidden = hidden + self.attention(normed, turned, positions, cache, asking)
        out: Tensor = hidden + self.mlp(rms_norm(hidden, self.mlp_norm, self.eps))
        return out


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions: float32 [head_dim / 2] on the CPU."""
    match config.kind:
        case "default":
            return rope.default_frequencies(head_dim, config.theta)
        case "linear":
            return rope.linear_frequencies(head_dim, config.theta, factor=config.factor)
        case "llama3":
            return rope.llama3_frequencies(
                head_dim,
                config.theta,
                factor=config.factor,
                low_freq_factor=config.low_freq_factor,
                high_freq_factor=config.high_freq_factor,
                original_positions=config.original_positions,
            )
        case "yarn":
            return rope.yarn_frequencies(
                head_dim,
                config.theta,
                factor=config.factor,
                original_positions=config.original_positions,
                beta_fast=config.beta_fast,
                beta_slow=config.beta_slow,
                truncate=config.truncate,
            )
