"""Asks once before leaving while something is being done, and says what is kept."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from .activity import Activity


class LeaveScreen(ModalScreen[bool]):
    """Returns whether to leave."""

    BINDINGS = [
        Binding("y,enter", "answer(True)", "leave"),
        Binding("n,escape", "answer(False)", "stay"),
    ]
    DEFAULT_CSS = """
    LeaveScreen { align: center middle; }
    LeaveScreen > Vertical {
        width: 60; max-width: 90%; height: auto; padding: 1 2;
        background: $panel; border: round $accent;
    }
    LeaveScreen Static { height: auto; }
    """

    def __init__(self, activity: Activity) -> None:
        super().__init__()
        self._question = leaving_question(activity)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._question, markup=False)
            yield Static("\ny  leave     n  stay", markup=False)

    def action_answer(self, sure: bool) -> None:
        if self.is_current:
            self.dismiss(sure)


def leaving_question(activity: Activity) -> str:
    """What is going on and what leaving keeps of it."""
    if activity.phase in ("answering", "stopping", "waiting"):
        kept = "The chat is kept, with what there is of this answer."
        return f"An answer is being written. Leave?\n{kept}"
    if activity.phase in ("saving", "reopening"):
        return "A chat is being saved or opened. Leave?\nWhat was said in it is kept."
    if activity.stage == "downloading":
        return "The model is being downloaded. Leave?\nThe next start goes on where this stops."
    if activity.stage == "prefilling":
        kept = "The next start goes on behind the last piece that is kept."
        return f"The documents are being read. Leave?\n{kept}"
    return "The model is being loaded. Leave?"
