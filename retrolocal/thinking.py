"""The block of thinking that some models write before their answer, told from the answer.

It stands at the very beginning of a reply, between `<think>` and `</think>`; some templates write
the first of them, so that the reply begins inside. Everything else is the answer, whatever tags it
has. Text may arrive in pieces cut anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a reply that has become certain."""

    text: str
    thinking: bool
    """The tags, and the white space around the block, are part of it."""


class Thinking:
    """Parts of one reply; all of them together are its text."""

    def __init__(self) -> None:
        self._state: Literal["beginning", "inside", "behind", "answer"] = "beginning"
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether the block has begun and not ended."""
        return self._state == "inside"

    def push(self, text: str) -> list[Part]:
        """What more text makes certain; a tag that may have begun is held back."""
        self._held += text
        parts: list[Part] = []
        while self._held and (part := self._next()) is not None:
            if part.text:
                parts.append(part)
        return parts

    def finish(self) -> list[Part]:
        """What was held back, as it stands: there is no more text."""
        held, self._held = self._held, ""
        return [Part(held, self._state in ("inside", "behind"))] if held else []

    def _next(self) -> Part | None:
        """The next part of what is held; None when more text is needed."""
        if self._state == "beginning":
            text = self._held.lstrip()
            if text.startswith(OPEN):
                self._state = "inside"
                return self._take(len(self._held) - len(text) + len(OPEN), thinking=True)
            if OPEN.startswith(text):
                return None
            self._state = "answer"
        if self._state == "inside":
            return self._inside()
        if self._state == "behind":
            space = len(self._held) - len(self._held.lstrip())
            if space < len(self._held):
                self._state = "answer"
            return self._take(space, thinking=True)
        return self._take(len(self._held), thinking=False)

    def _inside(self) -> Part | None:
        at = self._held.find(CLOSE)
        if at >= 0:
            self._state = "behind"
            return self._take(at + len(CLOSE), thinking=True)
        begun = next(n for n in range(len(CLOSE) - 1, -1, -1) if self._held.endswith(CLOSE[:n]))
        return (
            self._take(len(self._held) - begun, thinking=True) if begun < len(self._held) else None
        )

    def _take(self, length: int, *, thinking: bool) -> Part:
        text, self._held = self._held[:length], self._held[length:]
        return Part(text, thinking)


def opening(prompt: str) -> str:
    """`<think>` and the white space behind it, if a prompt ends with that; else nothing."""
    return prompt[found.start() :] if (found := re.search(rf"{OPEN}\s*\Z", prompt)) else ""


def thoughts(block: str) -> str:
    """What a block says, without its tags and the white space around it."""
    return block.strip().removeprefix(OPEN).removesuffix(CLOSE).strip()
