"""The passages that an answer was read from: where its attention went, as text.

Attention is not an explanation: a passage that got much of it was looked at, no more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .context import Context
from .head import Head
from .heap import give_back
from .ingest import Document
from .ingest.document import page_at
from .ingest.token_map import NO_DOCUMENT, TokenMap
from .outcome import Source as Source

LAYERS = 8
"""Layers that are asked where they looked."""
SINKS = 4
"""Tokens at the very start, which get attention whatever they say."""
MOST = 5
"""Passages."""
SMOOTHED = 32
"""Tokens over which shares are added up to find a passage."""
LONGEST = 192
"""Tokens of a passage before it is widened to sentences."""
EDGE, LEAST = 0.25, 0.05
"""A passage ends where the smoothed share falls below this part of its peak; the last passage is
the one whose peak is still this part of the first one's."""
WIDENED = 400
"""Characters that a passage grows by on either side, at most."""
_SENTENCE = re.compile(r"[.!?][\"')\]]*\s+|\n\s*\n")


def read_from(context: Context, head: Head) -> tuple[Source, ...]:
    """The passages of the documents in `head` that the reply in `context` was read from."""
    if not head.documents:
        return ()
    give_back()
    shares = context.read_from(LAYERS)
    if shares is None:
        return ()
    return passages(shares.numpy(), head.places, head.documents, skip=SINKS)


def passages(
    shares: NDArray[np.float32], places: TokenMap, documents: Sequence[Document], *, skip: int
) -> tuple[Source, ...]:
    """The passages with the largest shares, the largest first.

    shares [n] of the tokens from 0 on; `skip` of them (sinks) and tokens of no document are left
    out.
    """
    count = min(len(shares), len(places))
    spans = places.spans(0, count)
    own = np.where(spans["document"] == NO_DOCUMENT, 0, shares[:count]).astype(np.float64)
    own[:skip] = 0
    left = np.convolve(own, np.ones(SMOOTHED), mode="same") if count else own
    found: list[Source] = []
    first = float(left.max(initial=0.0))
    while len(found) < MOST and first > 0 and left.max() >= LEAST * first:
        begin, end = _around(left, int(left.argmax()))
        left[begin:end] = 0
        touched = np.flatnonzero(own[begin:end])
        if len(touched) == 0:
            continue
        begin, end = begin + int(touched[0]), begin + int(touched[-1]) + 1
        source = _source(spans[begin:end], float(own[begin:end].sum()), documents)
        if not any(_overlap(source, other) for other in found):
            found.append(source)
    return tuple(sorted(found, key=lambda source: -source.mass))


def _around(smoothed: NDArray[np.float64], peak: int) -> tuple[int, int]:
    """The tokens around a peak."""
    lower = smoothed < EDGE * smoothed[peak]
    before = np.flatnonzero(lower[max(0, peak - LONGEST // 2) : peak])
    after = np.flatnonzero(lower[peak : peak + LONGEST // 2])
    first = max(0, peak - LONGEST // 2)
    begin = first + int(before[-1]) + 1 if len(before) else first
    end = peak + int(after[0]) if len(after) else min(len(smoothed), peak + LONGEST // 2)
    return begin, max(end, peak + 1)


def _source(spans: NDArray[np.void], mass: float, documents: Sequence[Document]) -> Source:
    number = int(np.bincount(spans["document"][spans["document"] != NO_DOCUMENT]).argmax())
    inside = spans[spans["document"] == number]
    document = documents[number]
    start, end = _widened(document.text, int(inside["start"].min()), int(inside["end"].max()))
    return Source(
        document=document.name,
        page=page_at(document.pages, start),
        start=start,
        end=end,
        text=document.text[start:end],
        mass=mass,
    )


def _widened(text: str, start: int, end: int) -> tuple[int, int]:
    """From the beginning of the first sentence to the end of the last one."""
    low = max(0, start - WIDENED)
    ends = [match.end() for match in _SENTENCE.finditer(text, low, start + 1)]
    begin = max((at for at in ends if at <= start), default=low if low == 0 else start)
    match = _SENTENCE.search(text, max(start, end - 2), min(len(text), end + WIDENED))
    stop = match.end() if match else (len(text) if end + WIDENED >= len(text) else end)
    passage = text[begin:stop]
    return begin + len(passage) - len(passage.lstrip()), begin + len(passage.rstrip())


def _overlap(one: Source, other: Source) -> bool:
    same = one.document == other.document
    return same and one.start < other.end and other.start < one.end
