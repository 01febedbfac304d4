"""Chats on disk: one JSON file each, in a folder that only its owner can read.

A chat is what was asked and answered, and which documents and model it was about; what the caches
held of it lies beside it, in a file that others write (`cache_of`). A file is written beside and
renamed, so that a crash leaves the old or the new one. Text that is not a chat is left alone and
not listed. Imports only the standard library.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from .errors import DataError
from .outcome import Source, StopReason

FORMAT = 1
MAX_BYTES = 64 << 20
"""Of a chat's file; a larger one is not ours."""
TITLE_CHARACTERS = 80
CACHES_BYTES = 8 << 30
"""That what the caches held of all chats may take together."""
CORPUS = "corpus:"
"""Begins what stands for a document of a corpus in place of a path: `corpus:NAME#2`."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A question and its answer."""

    question: str
    answer: str
    stop_reason: StopReason = "eos"
    """Why the answer ended; a chat that does not say has it from the model."""
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One conversation."""

    id: str
    title: str
    created: str
    """ISO 8601, UTC; `updated` too."""
    updated: str
    model: str
    documents: tuple[str, ...] = ()
    """Paths made absolute; documents of a corpus as `CORPUS` says."""
    turns: tuple[ChatTurn, ...] = ()

    def going_on(self, model: str, documents: Sequence[str], turns: Sequence[ChatTurn]) -> Chat:
        """With these turns; a chat that was named by its first question still is."""
        named = not self.turns or self.title == _title(self.turns[0].question)
        return replace(
            self,
            title=_title(turns[0].question) if named and turns else self.title,
            model=model,
            documents=tuple(documents),
            turns=tuple(turns),
        )


class ChatStore:
    """The chats of one folder; made when the first one is saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(self, model: str, documents: Sequence[str], first_question: str) -> Chat:
        """A chat that is not saved yet, named by its first question."""
        now = _now()
        return Chat(
            id=f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
            title=_title(first_question),
            created=now,
            updated=now,
            model=model,
            documents=tuple(map(place_of, documents)),
        )

    def save(self, chat: Chat) -> Chat:
        """Writes a chat; returns it with the time of this. Raises DataError."""
        chat = replace(chat, updated=_now())
        text = json.dumps({"format": FORMAT, **asdict(chat)}, ensure_ascii=False, indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            write_private(self._path(chat.id), text)
        except OSError as error:
            raise DataError(
                f"the chat could not be saved in {self.folder} ({error.strerror}); "
                "/export writes it elsewhere"
            ) from error
        return chat

    def load(self, chat_id: str) -> Chat:
        """Raises DataError when there is no such chat or its file is damaged."""
        path = self._path(chat_id)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{path} is larger than any chat; remove it")
            return _chat(json.loads(path.read_bytes()))
        except FileNotFoundError as error:
            raise DataError(f"there is no chat {chat_id} in {self.folder}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a chat of this program ({error}); remove it") from error

    def list(self) -> list[Chat]:
        """All chats that can be read, newest first."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(self.load(path.stem))
            except DataError:
                continue
        return sorted(found, key=lambda chat: (chat.updated, chat.id), reverse=True)

    def rename(self, chat: Chat, title: str) -> Chat:
        """Raises DataError."""
        title = " ".join(title.split())[:TITLE_CHARACTERS]
        return self.save(replace(chat, title=title)) if title else chat

    def delete(self, chat_id: str) -> None:
        """Removes a chat and what the caches held of it; one that is gone already is no error.

        Raises DataError.
        """
        cache = self.cache_of(chat_id)
        try:
            for path in (self._path(chat_id), cache, cache.with_name(f"{cache.name}.new")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"the chat could not be deleted ({error.strerror})") from error

    def cache_of(self, chat_id: str) -> Path:
        """Where what the caches held of a chat is kept."""
        return self._path(chat_id).with_suffix(".safetensors")

    def _path(self, chat_id: str) -> Path:
        if not chat_id or Path(chat_id).name != chat_id or chat_id.startswith("."):
            raise DataError(f"{chat_id!r} names no chat")
        return self.folder / f"{chat_id}.json"


def _title(question: str) -> str:
    return " ".join(question.split())[:TITLE_CHARACTERS] or "chat"


def as_markdown(chat: Chat) -> str:
    """The chat for reading: a heading, what it was about, questions as quotations, answers."""
    about = ", ".join(names_of(chat.documents)) or "no document"
    parts = [f"# {chat.title}", f"{chat.model} · {about} · {chat.created}"]
    for turn in chat.turns:
        parts.append("\n".join(f"> {line}".rstrip() for line in turn.question.split("\n")))
        parts.append(turn.answer.strip())
    return "\n\n".join(parts) + "\n"


def drop_oldest_caches(folder: Path, limit: int = CACHES_BYTES) -> None:
    """Deletes what the caches held of the chats left longest ago, until the rest fits.

    Their text stays. The newest is never deleted. Raises OSError.
    """
    kept = [(path.stat(), path) for path in folder.glob("*.safetensors")]
    kept.sort(key=lambda one: (one[0].st_mtime_ns, one[1].name), reverse=True)
    total = 0
    for number, (status, path) in enumerate(kept):
        total += status.st_size
        if number and total > limit:
            path.unlink(missing_ok=True)


def place_of(document: str) -> str:
    """A document as a chat names it: an absolute path, or its place in a corpus."""
    if document.startswith(CORPUS):
        return document
    return str(Path(document).expanduser().absolute())


def names_of(documents: Sequence[str]) -> list[str]:
    """What people call the documents of a chat; a corpus is named once."""
    names = [
        f"{document.removeprefix(CORPUS).rpartition('#')[0]} (corpus)"
        if document.startswith(CORPUS)
        else Path(document).name
        for document in documents
    ]
    return list(dict.fromkeys(names))


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all; raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _chat(facts: dict[str, Any]) -> Chat:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']}, this program reads {FORMAT}")
    texts = {name: facts[name] for name in ("id", "title", "created", "updated", "model")}
    turns = tuple(map(_turn, facts["turns"]))
    documents = tuple(facts["documents"])
    strings = (
        *texts.values(),
        *documents,
        *(t.question for t in turns),
        *(t.answer for t in turns),
    )
    if not all(isinstance(value, str) for value in strings):
        raise TypeError("a value is not text")
    return Chat(**texts, documents=documents, turns=turns)


def _turn(facts: dict[str, Any]) -> ChatTurn:
    question, answer = facts["question"], facts["answer"]
    sources = tuple(_source(source) for source in facts.get("sources", ()))
    stop_reason = facts.get("stop_reason", "eos")
    if stop_reason not in get_args(StopReason):
        raise ValueError(f"an answer ended by {stop_reason!r}")
    return ChatTurn(question, answer, stop_reason, sources)


_SOURCE: dict[str, Any] = {
    "document": str,
    "page": int | None,
    "start": int,
    "end": int,
    "text": str,
    "mass": int | float,
}


def _source(facts: dict[str, Any]) -> Source:
    for name, kind in _SOURCE.items():
        if not isinstance(facts[name], kind):
            raise TypeError(f"the {name} of a source is {facts[name]!r}")
    if not math.isfinite(facts["mass"]):
        raise ValueError(f"the mass of a source is {facts['mass']}")
    return Source(**{name: facts[name] for name in _SOURCE})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
