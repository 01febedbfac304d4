"""What coding keys and values adds to the error of exact attention, on structured data."""

from __future__ import annotations

import pytest
import torch

from retrolocal.bench.synthetic import structured_data
from retrolocal.config import StoreType, WaveConfig
from retrolocal.fidelity import exact_attention
from retrolocal.kernels.codecs import Codec
from retrolocal.wave.clustering import cluster_segment

TOKENS = 65_536
MOST: dict[StoreType, tuple[float, float, float]] = {
    "int8": (0.01, 0.01, 0.01),
    "int4": (0.04, 0.1, 0.12),
}
"""Median relative error at gains 1, 2 and 3; of int4 a little above what was measured."""


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1, 2, 3])
def test_the_error_that_a_codec_adds(gain: int) -> None:
    data = structured_data(
        tokens=TOKENS, q_heads=7, kv_heads=1, head_dim=128, steps=16, gain=float(gain), seed=0
    )
    config = WaveConfig(store_type="bf16")
    size = config.segment_tokens
    pairs = zip(data.k.split(size, dim=1), data.v.split(size, dim=1), strict=True)
    segments = [cluster_segment(k, v, config)[0] for k, v in pairs]

    def answers(store: StoreType) -> torch.Tensor:
        codec = Codec.of(store, data.k.dtype)
        rows = [segment.recoded(codec).rows(0) for segment in segments]
        k, v = (torch.cat(parts)[None] for parts in zip(*rows, strict=True))
        return torch.stack([exact_attention(q, k, v)[0] for q in data.q])

    exact = answers("bf16")
    for store, most in MOST.items():
        wrong = (answers(store) - exact).norm(dim=2) / exact.norm(dim=2)
        median, tail = wrong.median(), wrong.flatten().quantile(0.95)
        print(f"gain {gain}, {store}: median {median:.4f}, p95 {tail:.4f}")  # noqa: T201
        assert median <= most[gain - 1]
