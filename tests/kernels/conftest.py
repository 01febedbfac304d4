"""Decode steps over clustered segments of structured keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrolocal.config import WaveConfig
from retrolocal.kernels.segment import Segment, SegmentTable
from retrolocal.kernels.wave_attention import Kernel, Selection, StepAnswer
from retrolocal.wave.clustering import cluster_segment

SMALL = WaveConfig(
    cluster_tokens=8, group_clusters=4, iterations=2, index_type="f32", store_type="bf16"
)


@dataclass(frozen=True)
class Step:
    """A step of Hq queries, and what float64 says about it."""

    q: Tensor
    """float32 [Hq, D]."""
    k: Tensor
    """[Hkv, N, D] of all segments, in the order of the tokens, before coding; v likewise."""
    v: Tensor
    steady_rows: tuple[Tensor, Tensor]
    """K and V [Hkv, n, D]."""
    segments: SegmentTable

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.q.shape[1])

    @property
    def steady(self) -> tuple[Tensor, Tensor]:
        """Attention over the steady zone alone: out [Hq, D] and lse [Hq], float32."""
        out, lse = self.attend(*self.steady_rows)
        return out.float(), lse.float()

    @property
    def dense(self) -> tuple[Tensor, Tensor]:
        rows = zip((self.k, self.v), self.steady_rows, strict=True)
        return self.attend(*(torch.cat(pair, dim=1) for pair in rows))

    def attend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Out [Hq, D] and lse [Hq], float64."""
        group = self.q.shape[0] // k.shape[0]
        k, v = (rows.double().repeat_interleave(group, dim=0) for rows in (k, v))
        scores = (k @ self.q.double()[:, :, None])[..., 0] * self.scale
        lse = torch.logsumexp(scores, dim=1)
        return (torch.exp(scores - lse[:, None])[:, None] @ v)[:, 0], lse

    def answer(self, kernel: Kernel, selection: Selection) -> StepAnswer:
        return kernel(self.q, self.steady_rows, self.segments, selection, scale=self.scale)


MakeStep = Callable[..., Step]


@pytest.fixture(scope="session")
def make_step() -> MakeStep:
    """Topics with a large common offset, or the keys, values and queries that are given."""

    def make(
        seed: int = 0,
        lengths: Sequence[int] = (200,),
        *,
        heads: tuple[int, int] = (4, 2),
        dim: int = 16,
        store: torch.dtype = torch.float32,
        config: WaveConfig = SMALL,
        gain: float = 1.0,
        k: Tensor | None = None,
        v: Tensor | None = None,
        q: Tensor | None = None,
    ) -> Step:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        (q_heads, kv_heads), tokens, steady = heads, sum(lengths), 5
        topics = 2 * normal(kv_heads, 12, dim)
        topic = torch.randint(12, (tokens + steady,), generator=generator)
        rows = topics[:, topic] + 0.7 * normal(kv_heads, tokens + steady, dim)
        rows += 3 * normal(kv_heads, 1, dim)
        values = normal(kv_heads, tokens + steady, dim) + rows.roll(1, dims=2) / 4
        wanted = topics[:, 0].repeat_interleave(q_heads // kv_heads, dim=0)
        keys, values = (x.to(store) for x in (rows if k is None else k, values if v is None else v))
        table = SegmentTable()
        pieces = (x[:, :tokens].split(list(lengths), dim=1) for x in (keys, values))
        for own_k, own_v in zip(*pieces, strict=True):
            table.append(cluster_segment(own_k, own_v, config)[0])
        return Step(
            q=gain * (wanted + normal(q_heads, dim)) if q is None else q,
            k=keys[:, :tokens],
            v=values[:, :tokens],
            steady_rows=(keys[:, tokens:], values[:, tokens:]),
            segments=table,
        )

    return make


class Fetched:
    """Segments of a table whose blocks are elsewhere, copied cluster by cluster when asked for."""

    def __init__(self, segments: Sequence[Segment], far: Sequence[int]) -> None:
        self.table = SegmentTable()
        self.asked: list[NDArray[np.int64]] = []
        """Segments, heads and clusters, of all calls together."""
        self._whole = list(segments)
        for number, segment in enumerate(segments):
            away = replace(segment, blocks=segment.blocks.to("meta"))
            self.table.append(away if number in far else segment)

    @contextmanager
    def fetch(self, *asked: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        before = self.asked or [np.zeros(0, np.int64)] * 3
        self.asked = [np.concatenate(pair) for pair in zip(before, asked, strict=True)]
        rows = [list(row) for row in zip(*(one.tolist() for one in asked), strict=True)]
        copies = [self._blocks(*row) for row in rows]
        yield np.array([copy.data_ptr() for copy in copies], np.int64)
        for copy in copies:
            copy.fill_(255)

    def _blocks(self, number: int, head: int, cluster: int) -> Tensor:
        segment = self._whole[number]
        width = segment.codec.token_bytes(segment.mean_key.shape[1])
        first, last = segment.starts[head, cluster : cluster + 2].tolist()
        return segment.blocks[head, first * width : last * width].clone()
