"""What was done before the first question: the stages, one line each, with time and amount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from textual.content import Content

from .activity import amount, size
from .engine import Advanced, Began, Stage
from .foreign import one_line
from .message_view import MessageView

_WORDS: dict[Stage, tuple[str, str]] = {
    "looking": ("looking for", "found"),
    "downloading": ("downloading", "downloaded"),
    "reading": ("reading", "read"),
    "tokenising": ("splitting into tokens", "split into tokens"),
    "loading": ("loading", "loaded"),
    "prefilling": ("prefill", "prefill done"),
    "compiling": ("compiling for this processor", "compiled for this processor"),
}
_SIGNS = {"running": "▸", "done": "✓", "paused": "‖", "failed": "✗"}


@dataclass(slots=True)
class _Step:
    stage: Stage
    about: str
    began: float
    done: int = 0
    total: int = 0
    ended: float = 0.0
    state: Literal["running", "done", "paused", "failed"] = "running"


class Opening(MessageView):
    """Grows while the engine opens; `end` when it is ready or has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.can_focus = False
        self._steps: list[_Step] = []

    @property
    def goes_on(self) -> bool:
        """Whether the last stage is running or paused."""
        return bool(self._steps) and self._steps[-1].state in ("running", "paused")

    def began(self, event: Began, now: float) -> None:
        """A stage begins, or goes on where it was paused; the one before is done."""
        last = self._steps[-1] if self._steps else None
        if last is not None and last.state == "paused" and last.stage == event.stage:
            last.state, last.began = "running", now - (last.ended - last.began)
        else:
            self.end(now)
            self._steps.append(_Step(event.stage, event.about, now))
        self.changed()

    def advanced(self, event: Advanced, now: float) -> None:
        """The amount of the stage is known now."""
        if not self._steps or self._steps[-1].stage != event.work:
            self.began(Began(event.work), now)
        last = self._steps[-1]
        last.done = event.done
        if last.total != event.total:
            last.total = event.total
            self.changed()

    def end(self, now: float) -> None:
        """The running stage is done."""
        self._ended("done", now)

    def pause(self, now: float) -> None:
        """The running stage was stopped; `began` with the same one goes on."""
        self._ended("paused", now)

    def fail(self, now: float) -> None:
        """The running stage will not be done."""
        self._ended("failed", now)

    def _ended(self, state: Literal["done", "paused", "failed"], now: float) -> None:
        if self._steps and self._steps[-1].state == "running":
            self._steps[-1].state, self._steps[-1].ended = state, now
            self.changed()

    def rows(self, width: int) -> Sequence[Content]:
        lines = []
        for step in self._steps:
            doing, done = _WORDS[step.stage]
            about = one_line(step.about, 40)
            words, facts = f"{doing} {about}".strip(), [_amount(step)]
            if step.state == "done":
                seconds = step.ended - step.began
                words = f"{about} {done}".strip()
                facts.append(f"{seconds:.1f} s" if seconds >= 0.1 else "")
            elif step.state == "paused":
                words, facts = f"{words} paused", [_reached(step)]
            said = "  ".join([f"{words:<36}", *(fact for fact in facts if fact)]).rstrip()
            line = Content.styled(f"{_SIGNS[step.state]} {said}", "$text-muted")
            lines.append(line.truncate(width, ellipsis=True))
        return lines


def _amount(step: _Step) -> str:
    if not step.total:
        return ""
    return f"{step.total:,} tokens" if step.stage == "prefilling" else size(step.total)


def _reached(step: _Step) -> str:
    return f"at {amount(step.done, step.total, step.stage)}" if step.total else ""
