"""What was done before the first question: the stages, one line each, with time and amount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from .activity import size
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


@dataclass(slots=True)
class _Step:
    stage: Stage
    about: str
    began: float
    total: int = 0
    ended: float | None = None


class Opening(MessageView):
    """Grows while the engine opens; `end` when it is ready or has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.can_focus = False
        self._steps: list[_Step] = []
        self._failed = False

    def began(self, event: Began, now: float) -> None:
        """A stage begins; the one before is done."""
        self.end(now)
        self._steps.append(_Step(event.stage, event.about, now))
        self.changed()

    def advanced(self, event: Advanced, now: float) -> None:
        """The amount of the stage is known now."""
        if not self._steps or self._steps[-1].stage != event.work:
            self.began(Began(event.work), now)
        if self._steps[-1].total != event.total:
            self._steps[-1].total = event.total
            self.changed()

    def end(self, now: float) -> None:
        """The running stage is done."""
        if self._steps and self._steps[-1].ended is None:
            self._steps[-1].ended = now
            self.changed()

    def fail(self) -> None:
        """The running stage will not be done."""
        self._failed = True
        self.changed()

    def rows(self, width: int) -> Sequence[Content]:
        lines = []
        for step in self._steps:
            doing, done = _WORDS[step.stage]
            about = one_line(step.about, 40)
            if step.ended is not None:
                seconds = step.ended - step.began
                words = f"{about} {done}".strip()
                sign, facts = "✓", [_amount(step), f"{seconds:.1f} s" if seconds >= 0.1 else ""]
            else:
                words = f"{doing} {about}".strip()
                sign, facts = "✗" if self._failed else "▸", [_amount(step)]
            said = "  ".join([f"{words:<36}", *(fact for fact in facts if fact)]).rstrip()
            lines.append(
                Content.styled(f"{sign} {said}", "$text-muted").truncate(width, ellipsis=True)
            )
        return lines


def _amount(step: _Step) -> str:
    if not step.total:
        return ""
    return f"{step.total:,} tokens" if step.stage == "prefilling" else size(step.total)
