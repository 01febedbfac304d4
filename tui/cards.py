"""What went wrong, as a card in the conversation: the fact, the value, the keys that help.

A card takes the focus when nothing is being typed; any letter it has no use for goes to the
prompt. The message is foreign text (it quotes file names), so never markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.content import Content
from textual.message import Message

from .. import errors
from .engine import NeedsDownload
from .foreign import one_line, visible
from .message_view import MessageView

TITLES: dict[type[BaseException], str] = {
    errors.UsageError: "That cannot be done",
    errors.SettingsError: "The configuration file cannot be used",
    errors.DownloadError: "The model could not be downloaded",
    errors.ConfigError: "The model's configuration cannot be used",
    errors.WeightsError: "The model's weights cannot be used",
    errors.ModelError: "The model cannot be used",
    errors.TokenizerError: "The model's tokenizer cannot be used",
    errors.NumericsError: "The model computed something that is no number",
    errors.DataError: "The recorded data does not fit",
    errors.DocumentError: "The document cannot be read",
    errors.ContextError: "Too long for the model",
    errors.MemoryLimitError: "Not enough memory",
    errors.DamagedError: "The library is damaged",
    errors.IdentityError: "Read with another model or other settings",
    errors.LockedError: "The library is in use",
    errors.SpaceError: "The disk has too little room",
    errors.LibraryError: "The library cannot be used",
    errors.StoreError: "The store cannot be read",
    errors.Interrupted: "Stopped",
    NeedsDownload: "The model is not on this machine",
    MemoryError: "Not enough memory",
    OSError: "The system refused",
}


def title_of(error: BaseException) -> str:
    """The heading of an error's card; the most special class that has one decides."""
    known = (TITLES[kind] for kind in type(error).__mro__ if kind in TITLES)
    return next(known, "An error inside the program")


def text_of(error: BaseException) -> str:
    """The message in full; for an error of the program itself, its kind and where to look."""
    if isinstance(error, (errors.RetrolocalError, OSError)):
        return str(error)
    if isinstance(error, MemoryError):
        return "the machine ran out of memory; close other programs and try again"
    return f"{type(error).__name__}: {error} (the log has the details)"


@dataclass(frozen=True, slots=True)
class CardKey:
    """A key and what it does, as the card shows it."""

    key: str
    label: str


class Card(MessageView):
    """A heading, a text and keys; posts `Card.Chosen` with the key."""

    class Chosen(Message):
        def __init__(self, card: Card, key: str) -> None:
            super().__init__()
            self.card = card
            self.key = key

    class Typed(Message):
        """A character that belongs into the prompt."""

        def __init__(self, character: str) -> None:
            super().__init__()
            self.character = character

    def __init__(self, title: str, text: str, keys: Sequence[CardKey]) -> None:
        super().__init__()
        self.title = title
        self.text = text
        self.keys = tuple(keys)
        self._typing = False
        """Whether a letter has gone to the prompt: those behind it follow, whatever they are."""

    def on_focus(self) -> None:
        self._typing = False

    def rows(self, width: int) -> Sequence[Content]:
        inner = max(8, width - 4)
        body = Content(visible(self.text)).wrap(inner)
        keys = [
            Content.assemble((f" {one.key} ", "bold $text-accent"), " ", one.label)
            for one in self.keys
        ]
        title = Content(f" {self.title} ").truncate(inner, ellipsis=True)
        top = Content("┌") + title + "─" * (inner + 2 - title.cell_length) + "┐"
        lines = [
            Content("│ ") + line.pad_right(max(0, inner - line.cell_length)) + " │"
            for line in (*body, *(key.truncate(inner, ellipsis=True) for key in keys))
        ]
        return [top, *lines, Content("└" + "─" * (inner + 2) + "┘")]

    def on_key(self, event: events.Key) -> None:
        if not self._typing and event.key in {one.key for one in self.keys}:
            event.stop()
            self.post_message(self.Chosen(self, event.key))
        elif event.is_printable and event.character is not None:
            event.stop()
            self._typing = True
            self.post_message(self.Typed(event.character))


def error_card(error: BaseException, *, retry: bool, file: str = "") -> Card:
    """The card of an error; `retry` when trying again can help, `file` when doing without it."""
    keys = [CardKey("r", "try again")] if retry else []
    keys += [CardKey("d", f"go on without {one_line(file, 60)}")] if file else []
    keys += [CardKey("c", "copy this message"), CardKey("l", "show the log")]
    return Card(title_of(error), text_of(error), keys)
