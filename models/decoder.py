"""The decoder: embedding, layers, output matrix, for every supported family.

One sequence, no batch dimension, no autograd. The caller brings one `LayerCache` per layer and
the decoder owns no state between calls. Knows nothing of files, text or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..kernels import rope
from ..kernels.rms_norm import rms_norm, unit_rms_norm
from .attention import Attention, LayerCache, Rotation, Turn
from .config import LayerConfig, ModelConfig
from .finite import FiniteWatch
from .linear import Linear
from .mlp import ExpertMlp, GatedMlp
from .quantised_modules import tied_logits
from .rope_config import ChunkConfig, RopeConfig


class Decoder(nn.Module):
    """Token ids in, logits out. Whoever makes one gives it weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = _embedding(config)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, index) for index, layer in enumerate(config.layers)
        )
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.head: Linear | None = None
        if not config.tie_embeddings:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False)
        # No buffers: casting the module to bfloat16 must not round the frequencies.
        self._rules = [rope_of(config, layer) for layer in config.layers]
        self._frequencies = {
            rule: inverse_frequencies(rule, config.head_dim)
            for rule in self._rules
            if rule is not None
        }
        self._norm = unit_rms_norm if config.unit_norms else rms_norm
        self._watch: FiniteWatch | None = None

    @property
    def capturable(self) -> bool:
        """Whether a step on a GPU is launches only: a router's choice is read on the host."""
        return not any(layer.experts for layer in self.config.layers)

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
        if self.config.embedding_scale != 1.0:
            scale = torch.tensor(self.config.embedding_scale, dtype=hidden.dtype)
            hidden = hidden * scale.item()
        if positions.device.type == "cuda":
            # A captured step must not copy from the host.
            known = self._frequencies.items()
            self._frequencies = {rule: one.to(positions.device) for rule, one in known}
            self._watch_on(positions.device).begin()
        rotations = {
            rule: self._rotation(rule, frequencies, positions, hidden.dtype)
            for rule, frequencies in self._frequencies.items()
        }
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            if on_layer is not None:
                on_layer(index)
            asking = wanted if index == len(self.layers) - 1 else tokens
            rule = self._rules[index]
            rotation = None if rule is None else rotations[rule]
            hidden = layer(hidden, rotation, positions, cache, asking)
        if self._watch is not None:
            self._watch.ended(positions, wait=wanted > 0)
        hidden = self._norm(hidden, self.norm, self.config.rms_norm_eps)
        if self.head is None:
            return tied_logits(self.embedding, hidden).float()
        logits: Tensor = self.head(hidden)
        return logits.float()

    def _watch_on(self, device: torch.device) -> FiniteWatch:
        if self._watch is None:
            self._watch = FiniteWatch(len(self.layers), device)
            for layer in self.layers:
                assert isinstance(layer, DecoderLayer)
                layer.attention.check = self._watch.note
        return self._watch

    def _rotation(
        self, rule: RopeConfig, frequencies: Tensor, positions: Tensor, dtype: torch.dtype
    ) -> Rotation:
        def turn(at: Tensor, scale: Tensor | float = 1.0) -> Turn:
            factor = scale * rule.attention_factor
            return rope.rotations(at, frequencies, attention_factor=factor, dtype=dtype)

        chunks = self.config.chunks
        if chunks is None:
            plain = turn(positions)
            return Rotation(plain, (plain,))
        inside = positions % chunks.length
        before = (inside + chunks.length).clamp(max=chunks.farthest)
        scale = logit_scale(positions, chunks)
        asked = (inside, before, torch.full_like(positions, chunks.farthest))
        return Rotation(turn(inside), tuple(turn(at, scale) for at in asked))


def _embedding(config: ModelConfig) -> nn.Embedding:
    weight = torch.empty(config.vocab_size, config.hidden_size)
    if not weight.is_meta:
        return nn.Embedding(config.vocab_size, config.hidden_size)
    # There is nothing to draw, and drawing it would import PyTorch's compiler, which takes 1.6 s.
    return nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)


def rope_of(config: ModelConfig, layer: LayerConfig) -> RopeConfig | None:
    """The rule that a layer's queries and keys turn by."""
    if not layer.rope:
        return None
    return config.rope if layer.window is None or config.local_rope is None else config.local_rope


def logit_scale(positions: Tensor, chunks: ChunkConfig) -> Tensor:
    """What dual chunk attention multiplies the logits of queries with: float64 [T, 1]."""
    seen = (positions + 1).double()[:, None]
    if chunks.original_positions is None:
        return torch.ones_like(seen)
    return (1 + 0.1 * torch.log(seen / chunks.original_positions)).clamp(min=1).square()


class DecoderLayer(nn.Module):
    """Attention, then the MLP or experts, each on a normalised input and added to the residual."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, index: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.eps = config.rms_norm_eps
        self.norm = unit_rms_norm if config.unit_norms else rms_norm
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.attention = Attention(config, index)
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        behind = config.norms_behind
        self.attention_out_norm = nn.Parameter(torch.ones(hidden)) if behind else None
        self.mlp_out_norm = nn.Parameter(torch.ones(hidden)) if behind else None
        self.mlp: GatedMlp | ExpertMlp
        if layer.experts and config.experts is not None:
            self.mlp = ExpertMlp(hidden, config.experts, config.activation)
        else:
            self.mlp = GatedMlp(
                hidden,
                config.intermediate_size,
                bias=config.mlp_bias,
                activation=config.activation,
            )

    def forward(
        self,
        hidden: Tensor,
        rotation: Rotation | None,
        positions: Tensor,
        cache: LayerCache,
        asking: int,
    ) -> Tensor:
        """hidden [T, hidden_size]; returns [asking, hidden_size] for the last `asking` tokens."""
        normed = self.norm(hidden, self.attention_norm, self.eps)
        hidden = hidden[hidden.shape[0] - asking :]
        found = self.attention(normed, rotation, positions, cache, asking)
        if self.attention_out_norm is not None:
            found = self.norm(found, self.attention_out_norm, self.eps)
        hidden = hidden + found
        made: Tensor = self.mlp(self.norm(hidden, self.mlp_norm, self.eps))
        if self.mlp_out_norm is not None:
            made = self.norm(made, self.mlp_out_norm, self.eps)
        return hidden + made


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions that turns: float32, on the CPU."""
    head_dim = config.dimensions(head_dim)
    match config.kind:
        case "default":
            return rope.default_frequencies(head_dim, config.theta)
        case "linear":
            return rope.linear_frequencies(head_dim, config.theta, factor=config.factor)
        case "longrope":
            return rope.longrope_frequencies(head_dim, config.theta, factors=config.factors)
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
