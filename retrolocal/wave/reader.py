"""What queries find in a wave cache: attention over its steady zone and its segments.

Knows nothing of how they grow. With dual chunk attention (`chunks`) queries come as three.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.attention import causal_attention, full_attention
from ..kernels.chunked_attention import chunked_attention, ranges
from ..kernels.gather import behind
from ..kernels.merge import merge
from ..kernels.segment import Segment, SegmentTable
from ..kernels.wave_attention import StepAnswer
from ..token_buffer import TokenBuffer
from .beside import Beside, Mark
from .chunks import ChunkedSegments, chunked_step
from .index import WaveIndex
from .prefill import prefill_attention
from .read_from import Asked
from .store import BlockStore


class Extent(NamedTuple):
    """How far a cache has come."""

    tokens: int
    clustered_end: int
    """Position of the first token behind the segments."""


class Reader:
    """Of one `WaveCache`, whose index, steady zone and store these are."""

    def __init__(
        self,
        config: WaveConfig,
        index: WaveIndex,
        steady: TokenBuffer,
        store: BlockStore,
        chunk_tokens: int | None,
        ahead: Beside | None = None,
    ) -> None:
        """`ahead`: where segments that exact attention reads next are brought to a GPU."""
        self._config = config
        self._ahead = ahead
        self._index = index
        self._steady = steady
        self._store = store
        self._chunked = (
            None if chunk_tokens is None else ChunkedSegments(chunk_tokens, config.sink_tokens)
        )

    def prompt(self, q: Tensor, extent: Extent, *, through_index: bool, short: bool) -> Tensor:
        """The last Tq tokens over everything held: [Hq, Tq, D].

        `through_index`: by wave prefill; `short`: each as a decode step, where that is possible.
        """
        indexed = len(self._index.segments) > 0
        if indexed and short and self._chunked is None:
            return self._one_by_one(q)
        if indexed and through_index and q.shape[-2] == 1:
            return self.step(q, extent).out[:, None].to(q.dtype, copy=True)
        found = self.steady(q, extent)
        for asked, first, segments in self._asked_segments(q, extent.tokens):
            if len(segments) == 0:
                continue
            if through_index:
                fetch = behind(self._store.fetch, first)
                found = prefill_attention(asked, found, segments, self._config, fetch)
                continue
            for segment in self._whole(range(first, first + len(segments)), q.device):
                k, v = (rows.to(q.dtype) for rows in stored_rows(segment))
                found = merge(found, full_attention(asked, k, v, scale=q.shape[-1] ** -0.5))
        return found[0].to(q.dtype)

    def steady(self, q: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """The last Tq tokens over the steady zone: out [Hq, Tq, D] and lse [Hq, Tq]."""
        scale = q.shape[-1] ** -0.5
        if self._chunked is None:
            return causal_attention(q, *self._steady.view(), scale=scale)
        chunk_tokens = self._chunked.chunk_tokens

        def held(positions: range) -> tuple[Tensor, Tensor]:
            return self._held(positions, extent.clustered_end)

        return chunked_attention(q, extent.tokens, chunk_tokens, held, scale=scale)

    def step(self, q: Tensor, extent: Extent) -> StepAnswer:
        """The last token over everything held, as in a decode step; valid until the next one."""
        if self._chunked is None:
            return self._index.answer(q[:, 0], self._steady.view(), fetch=self._store.fetch)

        def held(positions: range) -> tuple[Tensor, Tensor]:
            return self._held(positions, extent.clustered_end)

        return chunked_step(
            q[:, :, 0], extent.tokens, self._index, self._chunked, held, self._store.fetch
        )

    def asked(self, queries: Tensor, permutations: Sequence[Tensor], extent: Extent) -> list[Asked]:
        """Queries [S, Hq, D] (or three times that) with what they ask for, as the text has it."""
        segments, tokens = self._index.segments, extent.tokens
        if self._chunked is None:
            near, fetch = self._steady.view()[0], self._store.fetch
            return [Asked(queries, near, segments, permutations, fetch)]
        tables = self._chunked.of(segments, tokens)
        numbers = self._chunked.numbers(segments, tokens)
        seen = ranges(tokens, self._chunked.chunk_tokens)
        return [
            Asked(
                queries[kind],
                self._held(seen[kind], extent.clustered_end)[0],
                tables[kind],
                permutations[slice(*numbers[kind])],
                behind(self._store.fetch, numbers[kind][0]),
            )
            for kind in (2, 1, 0)
        ]

    def _whole(self, numbers: range, device: torch.device) -> Iterator[Segment]:
        """Segments one after the other, the next one on its way to the GPU meanwhile."""
        if self._ahead is None:
            yield from map(self._store.whole, numbers)
            return
        coming = deque([self._bring(number, device) for number in numbers[:1]])
        for following in (*numbers[1:], None):
            if following is not None:
                coming.append(self._bring(following, device))
            segment, mark = coming.popleft()
            self._ahead.wait(mark, segment.blocks)
            yield segment

    def _bring(self, number: int, device: torch.device) -> tuple[Segment, Mark]:
        assert self._ahead is not None
        whole = self._store.whole(number)
        with self._ahead.work():
            blocks = whole.blocks.to(device, non_blocking=True)
        return replace(whole, blocks=blocks), self._ahead.mark()

    def _one_by_one(self, q: Tensor) -> Tensor:
        """The last Tq tokens, each as a decode step."""
        k, v = self._steady.view()
        out, first = torch.empty_like(q), k.shape[1] - q.shape[1] + 1
        for number in range(q.shape[1]):
            seen = k[:, : first + number], v[:, : first + number]
            out[:, number] = self._index.answer(q[:, number], seen, fetch=self._store.fetch).out
        return out

    def _asked_segments(self, q: Tensor, tokens: int) -> Sequence[tuple[Tensor, int, SegmentTable]]:
        """Queries [Hq, Tq, D], the segments that they ask for and the number of the first."""
        if self._chunked is None:
            return [(q, 0, self._index.segments)]
        tables = self._chunked.of(self._index.segments, tokens)
        numbers = self._chunked.numbers(self._index.segments, tokens)
        return [
            (asked, first, table)
            for asked, (first, _), table in zip(q, numbers, tables, strict=True)
        ]

    def _held(self, positions: range, clustered_end: int) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, n, D] of the tokens of the steady zone at these positions."""
        sinks = self._config.sink_tokens

        def place(position: int) -> int:
            return min(position, sinks) + max(0, position - clustered_end)

        return self._steady.view(place(positions.start), place(positions.stop))


def stored_rows(segment: Segment) -> tuple[Tensor, Tensor]:
    """K and V [Hkv, N, D] of a segment as the store has them, in cluster order."""
    k, v = zip(*(segment.rows(head) for head in range(segment.heads)), strict=True)
    return torch.stack(k), torch.stack(v)
