"""The conversation: questions, answers and cards one below the other.

It follows the end while the reader is there; scrolling up lets go, `Ctrl+End` or coming back to
the end follows again. Only the newest messages are widgets of their own, because each widget is
arranged anew whenever a line is added; those before them are drawn, line for line the same, by
one widget.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget

from .answer import Answer, Question
from .message_view import MessageView

OWN_WIDGETS = 40
"""Questions and answers that are widgets; half of them are folded when there are more."""


class Earlier(MessageView, can_focus=False):
    """Finished messages as one widget; their own widgets are not mounted any more."""

    def __init__(self) -> None:
        super().__init__()
        self.views: list[MessageView] = []
        self._cache: tuple[int, int, list[Content]] = (0, 0, [])

    def take(self, views: Sequence[MessageView]) -> None:
        """Adds messages below those that are here."""
        self.views += views
        self.changed()

    def rows(self, width: int) -> Sequence[Content]:
        known_width, known, rows = self._cache
        if known_width != width or known > len(self.views):
            known, rows = 0, []
        for number, view in enumerate(self.views[known:], known):
            # The margin between two messages; the last one's is this widget's own.
            rows += [Content("")] if number else []
            rows += view.rows(width)
        self._cache = width, len(self.views), rows
        return rows


class ChatLog(VerticalScroll, can_focus=False):
    def on_mount(self) -> None:
        self.anchor()

    def follow(self) -> None:
        """Goes to the end and stays there."""
        self.anchor()

    def add(self, *widgets: Widget) -> None:
        """Appends widgets."""
        self.mount(*widgets)

    def show(self, views: Sequence[MessageView], kept: Sequence[Widget] = ()) -> None:
        """Shows these messages, and of what is here now only `kept`, behind them."""
        self.remove_children([child for child in self.children if child not in kept])
        before = kept[0] if kept else None
        folded = max(0, len(views) - OWN_WIDGETS)
        if folded:
            earlier = Earlier()
            earlier.take(views[:folded])
            self.mount(earlier, before=before)
        self.mount(*views[folded:], before=before)
        self.follow()

    def fold(self) -> None:
        """Folds the older half of the messages when there are too many."""
        own = self._own()
        if len(own) <= OWN_WIDGETS:
            return
        oldest = own[: OWN_WIDGETS // 2]
        if self.screen.focused in oldest:
            return
        earlier = self._earlier()
        with self.app.batch_update():
            if earlier is None:
                earlier = Earlier()
                self.mount(earlier, before=oldest[0])
            earlier.take(oldest)
            for view in oldest:
                view.remove()

    @property
    def questions(self) -> list[Question]:
        """All questions, the folded ones too."""
        return [view for view in self._all() if isinstance(view, Question)]

    @property
    def answers(self) -> list[Answer]:
        """All answers, the folded ones too."""
        return [view for view in self._all() if isinstance(view, Answer)]

    def neighbour(self, current: Widget | None, step: int) -> MessageView | None:
        """The message `step` further than `current`; from the end when that is none."""
        views = [view for view in self.query_children(MessageView) if view.can_focus]
        if not views:
            return None
        if not isinstance(current, MessageView) or current not in views:
            return views[-1] if step < 0 else None
        at = views.index(current) + step
        return views[at] if 0 <= at < len(views) else None

    def _earlier(self) -> Earlier | None:
        return next(iter(self.query_children(Earlier)), None)

    def _own(self) -> list[MessageView]:
        return [view for view in self.children if isinstance(view, Question | Answer)]

    def _all(self) -> list[MessageView]:
        earlier = self._earlier()
        folded = [] if earlier is None else earlier.views
        known = set(map(id, folded))
        return [*folded, *(view for view in self._own() if id(view) not in known)]
