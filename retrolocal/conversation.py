"""From documents and messages to the token ids of a prompt, and what of it a cache holds already.

A prompt is a head (what the template puts before a document, frozen with it), the documents, and
the dialogue: system text, questions and replies, after the documents. Document text never passes
through the template and never spells a special token. Knows no tensor.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os import PathLike

from .chat import ChatTemplate, Message
from .errors import TokenizerError, UsageError
from .ingest.document import Document
from .ingest.token_map import TokenMap
from .thinking import opening
from .tokenizer import Tokenizer

_PLACE = "\ue000retrolocal documents\ue001"
"""Stands for the documents while the template is rendered (private-use characters)."""
BETWEEN = "\n\n"
"""Between two documents, and between the last one and a question in the same message."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a prompt as text; `dialogue` begins after the documents."""

    head: str
    dialogue: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """The documents and messages so far."""

    documents: tuple[Document, ...] = ()
    system: str | None = None
    messages: tuple[Message, ...] = ()

    def asked(self, question: str) -> Conversation:
        """The conversation with one question more."""
        return replace(self, messages=(*self.messages, Message("user", question)))


def file_names(files: str | PathLike[str] | Iterable[str | PathLike[str]]) -> tuple[str, ...]:
    """Of one file or several; raises UsageError for what names none."""
    one_or_more = [files] if isinstance(files, str | PathLike) else files
    names = list(one_or_more) if isinstance(one_or_more, Iterable) else [None]
    if not all(isinstance(name, str | PathLike) for name in names):
        raise UsageError(f"files is {reprlib.repr(files)}; give a path, or several")
    return tuple(map(str, names))


class Prompter:
    """Composes prompts for one model. Without a template the text is continued as it stands."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    @property
    def has_template(self) -> bool:
        """Whether the model is asked in turns; otherwise its reply continues the prompt's text."""
        return self._template is not None

    def head_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of everything before the dialogue; none without documents."""
        if not conversation.documents:
            return []
        ids = self._opening_ids(conversation)
        for number, document in enumerate(conversation.documents):
            if number:
                ids += self._between_ids()
            ids += self._tokenizer.encode_raw(document.text, parse_special=False)
        return ids

    def head_places(self, conversation: Conversation) -> tuple[list[int], TokenMap]:
        """As `head_ids`, and where in the documents each of the tokens comes from.

        Takes half as long again. Raises DocumentError for a document too long to be mapped.
        """
        places = TokenMap(())
        if not conversation.documents:
            return [], places
        ids = self._opening_ids(conversation)
        places.append_other(len(ids))
        for number, document in enumerate(conversation.documents):
            if number:
                between = self._between_ids()
                ids += between
                places.append_other(len(between))
            own, offsets = self._tokenizer.encode_with_offsets(document.text)
            ids += own
            places.append_document(document, offsets)
        return ids, places

    def opening(self, conversation: Conversation) -> str:
        """What the template puts before the documents."""
        return self._compose(conversation).head

    def dialogue(self, conversation: Conversation) -> str:
        """The text after the documents, up to where the reply begins.

        Raises TokenizerError when the template does not keep the documents as they are.
        """
        return self._compose(conversation).dialogue

    def begun(self, dialogue: str) -> str:
        """How the template begins the block of thinking that the reply goes on with, if it does."""
        return "" if self._template is None else opening(dialogue)

    def dialogue_ids(self, text: str, *, beginning: bool) -> list[int]:
        """Token ids of the dialogue or its rest; `beginning` when no token stands before it."""
        if self._template is None and beginning:
            return self._tokenizer.encode(text)
        return self._tokenizer.encode_raw(text, parse_special=self._template is not None)

    def _opening_ids(self, conversation: Conversation) -> list[int]:
        """What stands before the first document."""
        if self._template is None:
            return self._tokenizer.encode("")
        return self._tokenizer.encode_raw(self._compose(conversation).head, parse_special=True)

    def _between_ids(self) -> list[int]:
        return self._tokenizer.encode_raw(BETWEEN, parse_special=False)

    def _compose(self, conversation: Conversation) -> Prompt:
        if self._template is None:
            return _plain(conversation)
        if conversation.documents:
            return _with_documents(conversation, self._template)
        messages = list(conversation.messages)
        if conversation.system is not None:
            messages.insert(0, Message("system", conversation.system))
        return Prompt("", self._template.render(messages))


def _plain(conversation: Conversation) -> Prompt:
    parts = [conversation.system, "".join(message.content for message in conversation.messages)]
    if conversation.documents:
        parts.insert(0, "")
    return Prompt("", BETWEEN.join(part for part in parts if part is not None))


def _with_documents(conversation: Conversation, template: ChatTemplate) -> Prompt:
    messages = list(conversation.messages)
    places: tuple[str, ...] = ()
    if template.takes_documents:
        places = (_PLACE,)
        if conversation.system is not None:
            messages.insert(0, Message("system", conversation.system))
    else:
        parts = [_PLACE, conversation.system, messages[0].content]
        content = BETWEEN.join(part for part in parts if part is not None)
        messages[0] = Message(messages[0].role, content)
    head, found, dialogue = template.render(messages, documents=places).partition(_PLACE)
    if not found or _PLACE in dialogue:
        raise TokenizerError(
            "the model's chat template does not keep a document as it is; "
            "choose another model, or give the text with -p"
        )
    return Prompt(head, dialogue)
