"""One line: what is going on, how far it is, the key that matters now."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from .activity import Activity, Phase
from .answer import bar

REFRESH = 0.25
FLASH_SECONDS = 4.0
BAR_CELLS = 16
KEYS = (
    ("F1", "help"),
    ("F2", "panel"),
    ("F3", "source"),
    ("F4", "chats"),
    ("^P", "commands"),
    ("^Q", "quit"),
)


class StatusBar(Static):
    """Draws an `Activity`; its clock runs only while something is being done."""

    def __init__(self, activity: Activity, clock: Callable[[], float]) -> None:
        super().__init__(markup=False)
        self._activity = activity
        self._clock = clock
        self._timer: Timer | None = None
        self._flash = ""
        self._flash_until = 0.0
        self._flash_phase: Phase | None = None
        """With whose end the remark ends, too."""
        self.extra = ""
        """Said beside `ready`: the one figure that matters."""

    def on_mount(self) -> None:
        self._timer = self.set_interval(REFRESH, self.show, pause=True)
        self.show()

    def flash(self, text: str, *, passing: bool = False) -> None:
        """Says something for four seconds in place of the state; `passing`: of this one only."""
        self._flash, self._flash_until = text, self._clock() + FLASH_SECONDS
        self._flash_phase = self._activity.phase if passing else None
        self.show()
        self.set_timer(FLASH_SECONDS, self.show)

    def show(self) -> None:
        """Draws the state of this moment."""
        if self._timer is not None:
            (self._timer.resume if self._activity.busy else self._timer.pause)()
        self.update(self.content_for(max(10, self.size.width or 80)), layout=False)

    def content_for(self, width: int) -> Content:
        """The line at a width: what is least needed goes first."""
        line = self._activity.line(self._clock())
        text = line.text
        if self._activity.queued:
            text += f" · {self._activity.queued} queued"
        if self._activity.phase == "ready" and self.extra:
            text += f" · {self.extra}"
        if self._flashing():
            text = self._flash
        left = Content.assemble((f" {line.sign} ", "bold $text-accent"), text)
        if line.share is not None and width >= 70:
            filled = bar(line.share, BAR_CELLS)
            rest = "·" * (BAR_CELLS - len(filled))
            left = Content.assemble(
                (f" {line.sign} ", "bold $text-accent"), (filled, "$text-accent"), rest, " ", text
            )
        hint = Content.styled(f"{line.hint} ", "$text-muted") if line.hint else Content("")
        gap = width - left.cell_length - hint.cell_length
        if gap < 2:
            room = width - hint.cell_length - 1
            left = left.truncate(max(0, room), ellipsis=True)
            gap = max(1, width - left.cell_length - hint.cell_length)
        return Content("").join([left, " " * gap, hint])

    def _flashing(self) -> bool:
        over = self._flash_phase not in (None, self._activity.phase)
        return bool(self._flash) and not over and self._clock() < self._flash_until

    def on_resize(self) -> None:
        self.show()


def key_line() -> Content:
    """The keys that are always there."""
    return Content("").join(
        Content.assemble((f" {key} ", "bold $text-accent"), (f"{label} ", "$text-muted"))
        for key, label in KEYS
    )
