"""What the chat's screen wants of the application around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Host(Protocol):
    state: Path
    """Folder of chats, log and what was copied."""
    clock: Callable[[], float]

    def copy(self, text: str) -> None: ...
    def leave(self, code: int = 0) -> None: ...
    def say_at_the_end(self, line: str) -> None: ...
    def clear_and_redraw(self) -> None: ...
