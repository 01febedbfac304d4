"""The conversation: questions, answers and cards one below the other.

It follows the end while the reader is there; scrolling up lets go, `End` or coming back to the
end follows again.
"""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.widget import Widget

from .answer import Answer, Question
from .message_view import MessageView


class ChatLog(VerticalScroll, can_focus=False):
    def on_mount(self) -> None:
        self.anchor()

    def follow(self) -> None:
        """Goes to the end and stays there."""
        self.anchor()

    def add(self, *widgets: Widget) -> None:
        """Appends widgets."""
        self.mount(*widgets)

    @property
    def questions(self) -> list[Question]:
        return [child for child in self.children if isinstance(child, Question)]

    @property
    def answers(self) -> list[Answer]:
        return [child for child in self.children if isinstance(child, Answer)]

    def neighbour(self, current: Widget | None, step: int) -> MessageView | None:
        """The message `step` further than `current`; from the end when that is none."""
        views = [child for child in self.children if isinstance(child, MessageView)]
        if not views:
            return None
        if not isinstance(current, MessageView) or current not in views:
            return views[-1] if step < 0 else None
        at = views.index(current) + step
        return views[at] if 0 <= at < len(views) else None
