"""`WaveCache`: the layer cache made of a steady zone, a wave index and a store.

Several new tokens at once (prefill) are answered exactly over everything held; a single one
(a decode step) is answered by tripartite attention. Segments are cut and clustered after the
answer. This is the only module that sees index and store together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.attention import causal_attention, full_attention
from ..kernels.merge import merge
from ..statistics import CacheStatistics
from ..token_buffer import TokenBuffer
from .attention import StepRecord, tripartite_attention
from .clustering import cluster_segment
from .index import WaveIndex
from .store import BlockStore, RamStore
from .zones import next_segment


@dataclass(frozen=True, slots=True)
class WaveSnapshot:
    """A point to come back to; segments never change, so three numbers are enough."""

    tokens: int
    clustered_end: int
    segments: int


class WaveCache:
    """See the module; `config` says how it clusters and how much a query reads."""

    def __init__(self, config: WaveConfig, store: BlockStore | None = None) -> None:
        self._config = config
        self._index = WaveIndex()
        self._store: BlockStore = RamStore() if store is None else store
        self._steady = TokenBuffer()
        self._tokens = 0
        self._clustered_end = config.sink_tokens
        self._permutations: list[Tensor] = []
        """Per segment int32 [Hkv, N]: the place in the segment of each stored token."""
        self._records: list[StepRecord] = []

    @property
    def tokens(self) -> int:
        return self._tokens

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """See `LayerCache.attend`."""
        self._steady.append(k, v)
        self._tokens += k.shape[1]
        generating = k.shape[1] == 1
        if q.shape[1] == 0:
            out = torch.empty_like(q)
        elif generating:
            answer, record = tripartite_attention(
                q, self._steady.view(), self._index, self._store, self._config
            )
            self._records.append(record)
            out = answer.to(q.dtype)
        else:
            out = self._exact(q)
        self._cut_segments(generating=generating)
        return out

    def settle(self) -> None:
        """Clusters what a generation step would cluster, so that it is part of a snapshot."""
        self._cut_segments(generating=True)

    def snapshot(self) -> WaveSnapshot:
        return WaveSnapshot(self._tokens, self._clustered_end, self._index.segments)

    def restore(self, snapshot: WaveSnapshot) -> None:
        """Drops the tokens that came after `snapshot`; segments cut since go back to steady."""
        sinks = self._config.sink_tokens
        if snapshot.segments < self._index.segments:
            later = range(snapshot.segments, self._index.segments)
            reopened = [self._in_token_order(segment) for segment in later]
            steady = self._steady.view()
            k, v = (
                torch.cat((t[:, :sinks], *(pair[i] for pair in reopened), t[:, sinks:]), dim=1)
                for i, t in enumerate(steady)
            )
            self._steady.replace(k, v)
        self._steady.keep(self._steady.tokens - (self._tokens - snapshot.tokens))
        self._tokens, self._clustered_end = snapshot.tokens, snapshot.clustered_end
        self._index.keep(snapshot.segments)
        self._store.keep(snapshot.segments)
        del self._permutations[snapshot.segments :]

    def _in_token_order(self, segment: int) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, N, D] of a segment as they came."""
        k, v = self._store.segment(segment)
        back = torch.argsort(self._permutations[segment].long(), dim=1)[..., None].expand_as(k)
        return k.gather(1, back), v.gather(1, back)

    def reset_statistics(self) -> None:
        """Starts the means over steps anew."""
        self._records.clear()

    def statistics(self) -> CacheStatistics:
        steps = max(1, len(self._records))
        exact = 1.0
        if self._records:
            exact = float(torch.stack([record.mass_exact for record in self._records]).mean())
        return CacheStatistics(
            kind="wave",
            tokens=self._tokens,
            steady_tokens=self._steady.tokens,
            clusters=sum(self._index.occupied()) if self._index.segments else 0,
            bytes=self._steady.bytes + self._store.bytes,
            steps=len(self._records),
            retrieved_tokens=sum(record.retrieved_tokens for record in self._records) / steps,
            mass_exact=exact,
            mass_estimated=1.0 - exact,
        )

    def _exact(self, q: Tensor) -> Tensor:
        """Attention of the last Tq tokens to all: segments whole, the steady zone causally."""
        scale = q.shape[2] ** -0.5
        result = causal_attention(q, *self._steady.view(), scale=scale)
        for segment in range(self._index.segments):
            part = full_attention(q, *self._store.segment(segment), scale=scale)
            result = merge(result, part)
        return result[0].to(q.dtype)

    def _cut_segments(self, *, generating: bool) -> None:
        while True:
            span = next_segment(
                self._tokens, self._clustered_end, self._config, generating=generating
            )
            if span is None:
                return
            sinks = self._config.sink_tokens
            keys, values = self._steady.view(sinks, sinks + len(span))
            clusters = cluster_segment(keys, values, self._config)
            order = clusters.permutation[..., None].expand_as(keys)
            self._store.append(keys.gather(1, order), values.gather(1, order))
            self._index.append(clusters)
            self._permutations.append(clusters.permutation.int())
            self._clustered_end = span.stop
            self._drop_from_steady(sinks, len(span))

    def _drop_from_steady(self, sinks: int, count: int) -> None:
        k, v = self._steady.view()
        kept = [torch.cat((t[:, :sinks], t[:, sinks + count :]), dim=1) for t in (k, v)]
        self._steady.replace(kept[0], kept[1])
