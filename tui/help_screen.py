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
    ("Ctrl+J, Alt+Enter", "a new line in the prompt"),
    ("Esc", "close what is open, else stop the answer (what was written stays) or pause reading"),
    ("Ctrl+C", "copy the selection, else stop, else clear the prompt, else (twice) leave"),
    ("Ctrl+D, Ctrl+Q", "leave"),
    ("Up, Down", "earlier questions, at the edge of the prompt"),
    ("Alt+Up, Alt+Down", "choose a message; then y copy, e edit, r retry, c copy code, 1-9 source"),
    ("PageUp, PageDown", "scroll; Ctrl+End follows the end again"),
    ("F1 F2 F3 F4", "help, panel, source, chats"),
    ("Ctrl+P", "all commands and themes"),
    ("Ctrl+L", "draw the screen again"),
    ("in the source", "/ search, g page, n N next and previous passage, y copy, j k G scroll"),
    ("mouse", "select to copy with Ctrl+C; with Shift (Option in iTerm2) the terminal selects"),
)


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
            yield Static(help_text(), markup=False)

    def action_close(self) -> None:
        self.dismiss()


def help_text() -> Content:
    """Every key and every command, one line each."""
    lines: list[Content | str] = [Content.styled("Keys", "bold $text-primary")]
    lines += [Content.assemble((f" {key:<18}", "$text-accent"), f" {what}") for key, what in KEYS]
    lines += ["", Content.styled("Commands", "bold $text-primary")]
    lines += [
        Content.assemble(
            (f" /{f'{command.name} {command.argument}':<17}", "$text-accent"), f" {command.what}"
        )
        for command in COMMANDS
    ]
    lines += ["", Content.styled("Esc closes this", "$text-muted")]
    return Content("\n").join(lines)
