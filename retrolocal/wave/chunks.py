"""Dual chunk attention over a wave index: each kind of query reads the segments of its range.

Segments end where chunks do (`zones.segment_end`), so a range is a list of whole segments and a
part of the steady zone. What the three kinds find is joined by log-sum-exp. Each range retrieves
by its own mass, which reads no less than one choice over all of them would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.attention import full_attention
from ..kernels.chunked_attention import Held, ranges
from ..kernels.gather import Fetch, behind
from ..kernels.merge import merge
from ..kernels.segment import Segment, SegmentTable
from ..kernels.wave_attention import StepAnswer
from .index import WaveIndex


class ChunkedSegments:
    """The segments of one layer by the range of keys that they belong to."""

    def __init__(self, chunk_tokens: int, sinks: int) -> None:
        assert sinks < chunk_tokens, f"{sinks} sinks in chunks of {chunk_tokens} tokens"
        self.chunk_tokens = chunk_tokens
        self._sinks = sinks
        self._known: tuple[int, list[Segment]] = 0, []
        self._tables = [SegmentTable(), SegmentTable(), SegmentTable()]

    def of(self, segments: SegmentTable, tokens: int) -> Sequence[SegmentTable]:
        """Those that each kind of query of the last of `tokens` tokens reads."""
        chunk, held = (tokens - 1) // self.chunk_tokens, segments[:]
        before, known = self._known
        same = len(known) == len(held) and all(a is b for a, b in zip(known, held, strict=True))
        if chunk != before or not same:
            self._tables = [_table(held[first:stop]) for first, stop in self.numbers(held, tokens)]
            self._known = chunk, held
        return self._tables

    def numbers(self, segments: Sequence[Segment], tokens: int) -> list[tuple[int, int]]:
        """The same as numbers of the first segment and of the one behind the last."""
        starts, at = [], self._sinks
        for segment in segments:
            starts.append(at)
            at += segment.tokens
        return [
            (
                sum(start < positions.start for start in starts),
                sum(start < positions.stop for start in starts),
            )
            for positions in ranges(tokens, self.chunk_tokens)
        ]


def _table(segments: Sequence[Segment]) -> SegmentTable:
    table = SegmentTable()
    for segment in segments:
        table.append(segment)
    return table


def chunked_step(
    q: Tensor,
    tokens: int,
    index: WaveIndex,
    segments: ChunkedSegments,
    held: Held,
    fetch: Fetch | None = None,
) -> StepAnswer:
    """One decode step: q [3, Hq, D] of the last of `tokens` tokens."""
    tables, numbers = segments.of(index.segments, tokens), segments.numbers(index.segments, tokens)
    seen = ranges(tokens, segments.chunk_tokens)
    answers = []
    for asked, table, (first, _), positions in zip(q, tables, numbers, seen, strict=True):
        steady = held(positions)
        if len(table):
            answers.append(_kept(index.answer(asked, steady, table, behind(fetch, first))))
        elif steady[0].shape[1]:
            answers.append(_exact(asked, steady))
    return _joined(answers)


def _kept(answer: StepAnswer) -> StepAnswer:
    """The next step of this thread writes where this one's answer lies."""
    return StepAnswer(
        out=answer.out.clone(),
        lse=answer.lse.clone(),
        lse_exact=answer.lse_exact.clone(),
        mass_exact=answer.mass_exact.clone(),
        retrieved_tokens=answer.retrieved_tokens.clone(),
        bytes=answer.bytes,
    )


def _exact(q: Tensor, steady: tuple[Tensor, Tensor]) -> StepAnswer:
    out, lse = full_attention(q[:, None], *steady, scale=q.shape[1] ** -0.5)
    none = torch.zeros(steady[0].shape[0], dtype=torch.int64, device=q.device)
    return StepAnswer(
        out=out[:, 0].float(),
        lse=lse[:, 0],
        lse_exact=lse[:, 0],
        mass_exact=torch.ones_like(lse[:, 0]),
        retrieved_tokens=none,
        bytes=0,
    )


def _joined(answers: Sequence[StepAnswer]) -> StepAnswer:
    out, lse = merge(*((answer.out, answer.lse) for answer in answers))
    exact = torch.logsumexp(torch.stack([answer.lse_exact for answer in answers]), dim=0)
    return StepAnswer(
        out=out,
        lse=lse,
        lse_exact=exact,
        mass_exact=torch.exp(exact - lse),
        retrieved_tokens=torch.stack([answer.retrieved_tokens for answer in answers]).sum(0),
        bytes=sum(answer.bytes for answer in answers),
    )
