"""How an answer ended and what it was read from: in a reply, on the screen and in a kept chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StopReason = Literal["eos", "stop", "length", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A passage that an answer was read from."""

    document: str
    page: int | None
    start: int
    end: int
    """Characters of the document's text."""
    text: str
    mass: float
    """Share of the attention, mean over steps, layers and heads."""
