"""The kept chats, newest first: filter, open, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..chats import Chat, ChatStore, names_of
from ..errors import DataError
from .foreign import one_line

TITLE_CELLS = 32


class ChatsScreen(ModalScreen[str | None]):
    """Returns the id of the chat to open."""

    BINDINGS = [
        Binding("escape", "close", "close"),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("ctrl+x", "delete", "delete", priority=True),
    ]
    DEFAULT_CSS = """
    ChatsScreen { align: center middle; }
    ChatsScreen > Vertical {
        width: 84; max-width: 100%; height: 80%; padding: 0 1;
        background: $panel; border: round $accent;
    }
    ChatsScreen Input, ChatsScreen Input:focus {
        border: none; height: 1; margin: 0 0 1 0; background: $surface;
    }
    ChatsScreen OptionList { height: 1fr; border: none; }
    ChatsScreen Static { height: 1; color: $text-muted; }
    """

    def __init__(
        self, store: ChatStore, chats: Sequence[Chat], deleted: Callable[[str], None]
    ) -> None:
        super().__init__()
        self._store = store
        self._deleted = deleted
        self._chats = list(chats)
        self._doomed: str | None = None

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Input(placeholder="filter")
            yield OptionList(markup=False)
            yield Static(id="chats-keys", markup=False)

    def on_mount(self) -> None:
        self._fill("")

    @on(Input.Changed)
    def filter(self, message: Input.Changed) -> None:
        self._fill(message.value)

    @on(Input.Submitted)
    def submitted(self) -> None:
        self._open(self._marked())

    @on(OptionList.OptionSelected)
    def selected(self, message: OptionList.OptionSelected) -> None:
        self._open(message.option_id)

    def action_close(self) -> None:
        if self.is_current:
            self.dismiss(None)

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_delete(self) -> None:
        """Deletes the marked chat when asked twice."""
        marked = self._marked()
        if marked is None:
            return
        if self._doomed != marked:
            self._doomed = marked
            self._say("Ctrl+X again deletes this chat for good")
            return
        try:
            self._store.delete(marked)
        except DataError as error:
            self._say(str(error))
            return
        self._deleted(marked)
        self._chats = [chat for chat in self._chats if chat.id != marked]
        self._fill(self.query_one(Input).value)

    def _open(self, chat_id: str | None) -> None:
        # Keys that came before the screen was gone must not close the one below.
        if chat_id is not None and self.is_current:
            self.dismiss(chat_id)

    def _marked(self) -> str | None:
        option = self.query_one(OptionList).highlighted_option
        return None if option is None else option.id

    def _fill(self, wanted: str) -> None:
        self._doomed = None
        options = self.query_one(OptionList)
        options.clear_options()
        found = [chat for chat in self._chats if matches(chat, wanted)]
        options.add_options([Option(line(chat), id=chat.id) for chat in found])
        if found:
            options.highlighted = 0
        count = f"{len(found)} of {len(self._chats)} chats"
        self._say(f"Enter open  Esc close  Ctrl+X delete   {count}")

    def _say(self, text: str) -> None:
        self.query_one("#chats-keys", Static).update(Content(text))


def matches(chat: Chat, wanted: str) -> bool:
    """Whether every word of `wanted` occurs in the title, the documents or the model."""
    text = " ".join((chat.title, chat.model, *names_of(chat.documents))).casefold()
    return all(word in text for word in wanted.casefold().split())


def line(chat: Chat) -> Content:
    """One chat in the list."""
    about = ", ".join(names_of(chat.documents)) or "no document"
    when = _local(chat.updated)
    turns = f"{len(chat.turns)} turn" + ("" if len(chat.turns) == 1 else "s")
    title = Content(one_line(chat.title, TITLE_CELLS))
    return Content.assemble(
        (f"{when}  ", "$text-muted"),
        title,
        " " * max(0, TITLE_CELLS - title.cell_length),
        (f"  {one_line(about, 24)}, {turns}", "$text-muted"),
    )


def _local(moment: str) -> str:
    """`2026-02-03 10:00` here, of a moment in UTC."""
    try:
        return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return one_line(moment, 16)
