"""The panel at the right: the documents with the context meter, the wave cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from .activity import Activity
from .engine import Answer, DocumentFacts, Measured, Opened
from .library_panel import LibraryPanel
from .wave_panel import WavePanel


class SidePanel(VerticalScroll, can_focus=False):
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(id="panel")
        self._clock = clock

    def compose(self) -> ComposeResult:
        yield LibraryPanel()
        yield WavePanel(self._clock)

    def opened(self, opened: Opened) -> None:
        self.query_one(LibraryPanel).limit = opened.max_tokens
        self.query_one(WavePanel).device = opened.device

    def documents_changed(self, documents: Sequence[DocumentFacts]) -> None:
        self.query_one(LibraryPanel).show_documents(documents)

    def measured(self, measured: Measured) -> None:
        self.query_one(LibraryPanel).show_context(measured)
        self.query_one(WavePanel).show_figures(measured)

    def answered(self, answer: Answer) -> None:
        self.query_one(WavePanel).show_rate(answer.tokens_per_second)

    def figures(self) -> list[Content]:
        """What the panel says about the cache, also when it is not shown."""
        return self.query_one(WavePanel).lines()

    def activity(self, activity: Activity) -> None:
        self.query_one(LibraryPanel).show_activity(activity)
