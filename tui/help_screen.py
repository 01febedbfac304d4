"""Keys and commands, on one page."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from .slash import COMMANDS

KEYS: tuple[tuple[str, str], ...] = (
    ("Enter", "send; questions asked while an answer is written wait for their turn"),
    ("Ctrl+J", "a new line (also Alt+Enter, Shift+Enter where the terminal tells them from Enter)"),
    (
        "Esc",
        "close what is open, leave an edit, else stop the answer (what was written stays) or pause",
    ),
    (
        "Ctrl+C",
        "copy the selection, else stop, else clear the prompt or leave an edit, else (twice) leave",
    ),
    ("Ctrl+D, Ctrl+Q", "leave (Ctrl+D from an empty prompt); the chat is kept"),
    ("Up, Down", "earlier questions, also of other days, from the prompt's first and last line"),
    (
        "Alt+Up, Alt+Down",
        "choose a message; then y copy, e edit, r ask again, c copy its code,"
        " 1-9 show a passage it was read from",
    ),
    ("PageUp, PageDown", "scroll; Ctrl+End follows the end again"),
    ("F1", "this page"),
    ("F2", "the panel: documents, context, what the cache does"),
    ("F3", "the text of the documents, at the passages the last answer was read from"),
    ("", "there: / search, g page, n N next and previous passage, y copy, j k G scroll"),
    ("F4", "earlier chats; Enter opens one, Ctrl+X twice deletes it"),
    ("Ctrl+P", "all commands and themes"),
    ("Ctrl+L", "draw the screen again"),
    ("mouse", "select, then Ctrl+C copies; with Shift (Option in iTerm2) the terminal selects"),
)
NARROW = 60
"""Cells below which what a key does stands under it."""


_HEADING = "bold $text-primary"


class HelpScreen(ModalScreen[None]):
    BINDINGS = [Binding("escape,f1,q", "close", "close")]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: 96; max-width: 100%; height: auto; max-height: 100%; padding: 1 2;
        background: $panel; border: round $accent;
    }
    """

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(markup=False)

    def on_resize(self) -> None:
        width = min(96, self.size.width) - 8
        self.query_one(Static).update(help_text(width))

    def action_close(self) -> None:
        if self.is_current:
            self.dismiss()


def help_text(width: int) -> Content:
    """Every key and every command; what it does is wrapped beside it."""
    lines = [Content.styled("Keys", _HEADING)]
    lines += [line for key, what in KEYS for line in _entry(key, what, width)]
    lines += [Content(""), Content.styled("Commands", _HEADING)]
    for command in COMMANDS:
        lines += _entry(f"/{command.name} {command.argument}", command.what, width)
    lines += [Content(""), Content.styled("Esc closes this", "$text-muted")]
    return Content("\n").join(lines)


def _entry(key: str, what: str, width: int) -> list[Content]:
    if width < NARROW:
        above = [Content.styled(f" {key}", "$text-accent")] if key else []
        return [*above, *(Content("   ") + line for line in Content(what).wrap(width - 3))]
    left = Content.styled(f" {key:<18}", "$text-accent")
    return [
        Content.assemble(" " * 19 if number else left, " ", line)
        for number, line in enumerate(Content(what).wrap(width - 20))
    ]
