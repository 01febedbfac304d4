"""The head of a context: template text and documents, as token ids with their places.

Taken from the library where it has the documents, else made by the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .chat import Message
from .conversation import Conversation, Prompter
from .ingest import Document
from .ingest.token_map import TokenMap
from .shelf import Shelf


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before a dialogue."""

    documents: tuple[Document, ...]
    ids: list[int]
    opening: str = ""
    """What the template puts before the documents."""
    places: TokenMap = field(default_factory=lambda: TokenMap(()))
    """Where the tokens come from."""
    kept: bool = False
    """Whether the library has it."""


class Heads:
    """Makes heads; that of the last documents is remembered."""

    def __init__(self, prompter: Prompter, shelf: Shelf | None) -> None:
        self._prompter = prompter
        self._shelf = shelf
        self._last: Head | None = None

    def of(self, documents: Sequence[Document]) -> Head:
        """Raises what composing a prompt raises, and IdentityError as `Shelf.ids`."""
        documents = tuple(documents)
        if self._last is None or self._last.documents != documents:
            self._last = self._made(documents)
        return self._last

    def known_tokens(self, head: Head) -> int:
        """How many tokens at the beginning of a head need not be read."""
        if head.kept or self._shelf is None:
            return len(head.ids) if head.kept else 0
        return self._shelf.known_tokens(head.opening, head.ids) if head.documents else 0

    def distrusted(self, documents: Sequence[Document]) -> bool:
        """See `Shelf.distrusted`; their head is made anew then."""
        damaged = self._shelf is not None and self._shelf.distrusted(documents)
        if damaged:
            self.forget()
        return damaged

    def forget(self) -> None:
        self._last = None

    def _made(self, documents: tuple[Document, ...]) -> Head:
        asked = Conversation(documents, None, (Message("user", "?"),))
        if not documents:
            return Head(documents, [])
        known = None if self._shelf is None else self._shelf.head(documents)
        if known is not None:
            return Head(documents, known[0], places=known[1], kept=True)
        ids, places = self._prompter.head_places(asked)
        return Head(documents, ids, self._prompter.opening(asked), places)
