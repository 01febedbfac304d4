"""The documents of the conversation, how far they are read, and how full the context is."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from .activity import Activity
from .answer import bar
from .engine import DocumentFacts, Measured
from .foreign import one_line

WIDTH = 35
"""Cells of the panel's content."""


class LibraryPanel(Static):
    def __init__(self) -> None:
        super().__init__(markup=False)
        self.limit = 0
        """Tokens that the context may have; 0 until the model is open."""
        self._documents: Sequence[DocumentFacts] = ()
        self._tokens: int | None = None
        self._reading: tuple[int, int] | None = None
        self._sign = "○"
        self._shown = -1
        """Lines on the screen."""

    def on_mount(self) -> None:
        self._draw()

    def show_documents(self, documents: Sequence[DocumentFacts]) -> None:
        self._documents = documents
        self._draw()

    def show_context(self, measured: Measured) -> None:
        tokens = None if measured.cache is None else measured.cache.tokens
        if tokens != self._tokens:
            self._tokens = tokens
            self._draw()

    def show_activity(self, activity: Activity) -> None:
        # A question has a prefill of its own, when the documents are read.
        unread = activity.unread or activity.phase == "starting"
        counted = unread and activity.stage == "prefilling" and activity.total
        reading = (activity.done, activity.total) if counted else None
        sign = "◐" if reading else ("○" if unread else "●")
        if (reading, sign) != (self._reading, self._sign):
            self._reading, self._sign = reading, sign
            self._draw()

    def _draw(self) -> None:
        lines = self.lines()
        self.update(Content("\n").join(lines), layout=len(lines) != self._shown)
        self._shown = len(lines)

    def lines(self) -> list[Content]:
        """What the panel says."""
        lines = [heading("Documents", str(len(self._documents)) if self._documents else "none")]
        for document in self._documents:
            pages = f"{len(document.pages):,} pages" if document.pages else ""
            right = pages or f"{len(document.text):,} chars"
            lines.append(
                row(f" {self._sign} {one_line(document.name, WIDTH - len(right) - 5)}", right)
            )
        if self._reading is not None:
            done, total = self._reading
            lines.append(meter("read", done / total, f"{done / total:.0%}"))
        if self.limit and self._tokens is not None:
            share = self._tokens / self.limit
            lines.append(meter("context", share, f"{short(self._tokens)} / {short(self.limit)}"))
        return [*lines, Content("")]


def heading(left: str, right: str = "") -> Content:
    """A line that begins a part of the panel."""
    gap = max(1, WIDTH - len(left) - len(right))
    return Content.assemble((left, "bold $text-primary"), " " * gap, (right, "$text-muted"))


def row(left: str, right: str) -> Content:
    """A name and its value."""
    left_text = Content(left)
    gap = max(1, WIDTH - left_text.cell_length - len(right))
    return Content.assemble(left, " " * gap, (right, "$text-muted"))


def meter(name: str, share: float, value: str, cells: int = 10) -> Content:
    """A name, a bar, a value."""
    filled = bar(share, cells)
    text = Content.assemble(
        f" {name:<9}", (filled, "$text-accent"), ("·" * (cells - len(filled)), "$text-muted")
    )
    gap = max(1, WIDTH - text.cell_length - len(value))
    return Content.assemble(text, " " * gap, (value, "$text-muted"))


def short(count: int) -> str:
    """`312 k`, `1.05 M`, `950`."""
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} M"
    return f"{count / 1000:.0f} k" if count >= 10_000 else f"{count:,}"
