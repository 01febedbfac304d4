"""The wave index of one layer: the segments' two levels, and what a query reads of them."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from ..config import WaveConfig
from ..kernels.gather import Fetch
from ..kernels.segment import Segment, SegmentTable
from ..kernels.wave_attention import Selection, StepAnswer, wave_attention
from .zones import PAPER_ESTIMATED, PAPER_RETRIEVED

SHORT_GROUPS = 512
"""Up to so many groups (65,536 tokens) looking into more of them costs little ..."""
SHORT_LEAST = 256
"""... so that at least this many are looked into: a mean hides a lone token."""
SHARP_GROUPS = 4096
"""Up to so many groups are all looked into where attention is sharp or a budget is fixed, whatever
share they are."""
LONG_SHARP_TOKENS = 0.04
"""Share of the tokens that sharp attention retrieves at least where there are more groups."""


def selection(config: WaveConfig) -> Selection:
    """What a decode step reads under these settings, in a long text."""
    if config.scheme == "paper":
        share = PAPER_RETRIEVED if config.budget is None else config.budget
        return Selection(
            descend=1.0,
            tokens=1.0,
            clusters=share,
            second_order=False,
            estimated=min(PAPER_ESTIMATED, 1 - share),
        )
    if config.budget is None:
        return Selection(
            descend=config.descend,
            least_groups=config.least_groups,
            sure=config.sure,
            frozen=config.frozen,
            calm=config.calm,
            tokens=config.cap,
            sharp_descend=config.sharp_descend,
            sharp_tokens=config.sharp_cap,
            flat=config.flat,
            flat_descend=config.flat_descend,
            flat_tokens=config.flat_cap,
            least=config.least,
            most=config.most,
            floor=config.floor,
            epsilon=config.epsilon,
        )
    return Selection(descend=config.descend, tokens=config.budget, whole=True)


def for_length(chosen: Selection, groups: int) -> Selection:
    """The same in a text of so many groups."""
    share = min(1.0, SHARP_GROUPS / max(1, groups))
    if chosen.whole:
        return replace(chosen, descend=max(chosen.descend, share), whole=share < 1)
    sharp = max(chosen.sharp_descend, share)
    least, tokens = chosen.least_groups, chosen.sharp_tokens
    if groups <= SHORT_GROUPS:
        least = max(least, SHORT_LEAST)
    elif groups > SHARP_GROUPS:
        tokens = max(tokens, LONG_SHARP_TOKENS)
    return replace(chosen, least_groups=least, sharp_descend=sharp, sharp_tokens=tokens)


class WaveIndex:
    """Segments are appended and never change; nothing is copied when one comes."""

    def __init__(self, config: WaveConfig) -> None:
        self._config = config
        self._selected = 0, selection(config)
        self.segments = SegmentTable()

    @property
    def _selection(self) -> Selection:
        groups, chosen = self._selected
        if self.segments.totals.groups != groups:
            groups = self.segments.totals.groups
            chosen = for_length(selection(self._config), groups)
            self._selected = groups, chosen
        return chosen

    def append(self, segment: Segment) -> None:
        self.segments.append(segment)

    def keep(self, segments: int) -> None:
        """Forgets all but the first `segments`."""
        self.segments.keep(segments)

    @property
    def bytes(self) -> int:
        """Bytes of both levels."""
        return sum(segment.fine_bytes + segment.coarse_bytes for segment in self.segments)

    @property
    def store_bytes(self) -> int:
        """Bytes of the clustered keys and values, of all KV heads."""
        return sum(segment.blocks.nbytes for segment in self.segments)

    @property
    def clusters(self) -> int:
        """Clusters that hold a token, summed over KV heads."""
        return sum(int((segment.starts.diff() > 0).sum()) for segment in self.segments)

    def answer(
        self,
        q: Tensor,
        steady: tuple[Tensor, Tensor],
        segments: SegmentTable | None = None,
        fetch: Fetch | None = None,
    ) -> StepAnswer:
        """Tripartite attention of one step: q [Hq, D], K and V [Hkv, n, D] of the steady zone.

        Over all segments, or over some of them.

        RetroInfer (arXiv 2505.02922), section 4.2, with the differences in ARCHITECTURE.md. The
        answer is valid until this thread's next step.
        """
        return wave_attention(
            q,
            steady,
            self.segments if segments is None else segments,
            self._selection,
            scale=1 / math.sqrt(q.shape[1]),
            fetch=fetch,
        )

    def prepare_on_device(self, q: Tensor) -> tuple[int, ...]:
        """Makes the device's tables and scratch ready for `answer_on_device` to queries like q.

        What comes back changes when a captured step would no longer do: capture anew.
        """
        from ..kernels.wave_attention_triton import step_places

        return step_places(q, self.segments, self._selection)

    def answer_on_device(
        self, q: Tensor, steady: tuple[Tensor, Tensor], count: Tensor
    ) -> StepAnswer:
        """`answer` with a steady zone of int32 count[0] tokens, in arrays with room for more.

        Only launches: nothing is read from the device, so a CUDA graph can capture it.
        """
        from ..kernels.wave_attention_triton import device_scratch

        scratch = device_scratch(q, self.segments, self._selection)
        scale = 1 / math.sqrt(q.shape[1])
        return scratch.step(q, steady, count, self.segments, self._selection, scale=scale)
