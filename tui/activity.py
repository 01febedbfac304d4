"""What the engine is doing, as one line says it.

`Activity` is changed by the events of the engine and by the user's keys; `Activity.line` is a
pure function of it and the time. Every state has a word and a sign, so that none needs colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..amounts import size as size
from ..amounts import spoken
from .engine import Advanced, Began, Stage
from .foreign import one_line
from .time_left import TimeLeft

Phase = Literal[
    "starting",
    "consent",
    "paused",
    "ready",
    "waiting",
    "answering",
    "stopping",
    "failed",
    "saving",
    "reopening",
]
BUSY: frozenset[Phase] = frozenset(
    {"starting", "waiting", "answering", "stopping", "saving", "reopening"}
)
SPINNER = "◐◓◑◒"
PATIENCE = 0.5
"""Seconds after which a stop that has not ended yet is explained."""


@dataclass(frozen=True, slots=True)
class StatusLine:
    """What the status bar shows."""

    sign: str
    text: str
    hint: str = ""
    share: float | None = None
    """Of a progress bar; None for no bar."""


@dataclass(slots=True)
class Activity:
    """The state of everything below the prompt; times are seconds of one monotonic clock."""

    phase: Phase = "starting"
    began: float = 0.0
    stage: Stage | None = None
    stage_began: float = 0.0
    about: str = ""
    done: int = 0
    total: int = 0
    tokens: int = 0
    """Pieces of the answer so far; the engine's count once it says one."""
    first_text: float | None = None
    unread: bool = True
    """Whether the documents have not been read to their end."""
    queued: int = 0
    kept: str = ""
    """Said beside `paused`: what is kept."""
    leaving: bool = False
    """Whether the application is left once this is done."""
    time_left: TimeLeft = field(default_factory=TimeLeft)

    @property
    def busy(self) -> bool:
        return self.phase in BUSY

    def enter(self, phase: Phase, now: float) -> None:
        """Begins a phase; counts of the one before are forgotten."""
        self.phase, self.began = phase, now
        if phase != "stopping":
            self.stage, self.about, self.done, self.total = None, "", 0, 0
            self.tokens, self.first_text = 0, None
            self.time_left = TimeLeft()

    def began_stage(self, event: Began, now: float) -> None:
        self.stage, self.about = event.stage, event.about
        self.done = self.total = 0
        self.time_left = TimeLeft()
        self.stage_began = now

    def advanced(self, event: Advanced, now: float) -> None:
        if self.stage != event.work:
            self.began_stage(Began(event.work, self.about), now)
        self.done, self.total = event.done, event.total
        self.time_left.advance(event.done, event.total, now)

    def wrote(self, now: float) -> None:
        if self.phase == "waiting":
            self.phase = "answering"
        if self.first_text is None:
            self.first_text = now

    def rate(self, now: float) -> float:
        """Tokens of the answer per second; 0 before the second one."""
        if self.first_text is None or self.tokens < 2 or now <= self.first_text:
            return 0.0
        return (self.tokens - 1) / (now - self.first_text)

    def line(self, now: float) -> StatusLine:
        """What to show at time `now`."""
        turning = SPINNER[int(now * 4) % len(SPINNER)]
        seconds = max(0.0, now - self.began)
        match self.phase:
            case "ready":
                return StatusLine("●", "ready")
            case "failed":
                return StatusLine("✗", "failed: see the message above", "r try again")
            case "consent":
                return StatusLine("?", "a download is needed", "y download  n not now")
            case "paused":
                share = self.done / self.total if self.total else None
                return StatusLine("‖", f"paused {self.kept}".rstrip(), "Enter goes on", share)
            case "saving":
                hint = "Esc quit now" if self.leaving else ""
                return StatusLine(turning, f"saving the chat, {seconds:.0f} s", hint)
            case "reopening":
                return StatusLine(turning, f"opening the chat, {seconds:.0f} s")
            case "stopping":
                late = seconds > PATIENCE
                what = "finishing the segment" if self.stage == "prefilling" else "finishing a step"
                hint = "Esc quit now" if self.leaving else ""
                return StatusLine(turning, f"stopping, {what}" if late else "stopping", hint)
            case "answering":
                parts = [f"{self.tokens:,} tokens"] if self.tokens else []
                rate = self.rate(now)
                parts += [f"{rate:.1f} tok/s"] if rate else []
                parts.append(f"{seconds:.0f} s")
                return StatusLine(turning, "answering  " + " · ".join(parts), "Esc stop")
            case "waiting":
                if self.stage == "compiling":
                    what = f"compiling for this processor, once, {seconds:.0f} s"
                    return StatusLine(turning, what, "Esc stop")
                if self.total and self.stage == "prefilling":
                    return self._counted(turning, now, "reading the question", "Esc stop")
                return StatusLine(turning, f"waiting {seconds:.0f} s", "Esc stop")
            case "starting":
                return self._starting(turning, now)

    def _starting(self, turning: str, now: float) -> StatusLine:
        about = one_line(self.about, 40)
        match self.stage:
            case None:
                return StatusLine(turning, "starting")
            case "looking":
                return StatusLine(turning, f"looking for {about}")
            case "reading":
                return StatusLine(turning, f"reading {about}", "Esc pause")
            case "tokenising":
                return StatusLine(turning, f"splitting {about} into tokens", "Esc pause")
            case "downloading":
                return self._counted(turning, now, "downloading", "Esc pause")
            case "loading":
                return self._counted(turning, now, "loading the weights", "")
            case "prefilling":
                return self._counted(turning, now, "prefill", "Esc pause")
            case "compiling":
                return StatusLine(turning, "compiling for this processor, once")

    def _counted(self, turning: str, now: float, word: str, hint: str) -> StatusLine:
        if not self.total:
            return StatusLine(turning, word, hint)
        share = self.done / self.total
        parts = [f"{word} {share:.0%}", amount(self.done, self.total, self.stage)]
        seconds = self.time_left.seconds(now)
        if self.stage == "downloading" and now > self.stage_began:
            parts.append(f"{size(self.done / (now - self.stage_began))}/s")
        if self.done == self.total:
            parts.append("finishing")
        elif seconds is not None:
            parts.append(spoken(seconds))
        return StatusLine(turning, " · ".join(parts), hint, share)


def amount(done: int, total: int, stage: Stage | None) -> str:
    """`115,712 / 312,408 tokens`, or bytes of a download or of weights."""
    if stage == "prefilling":
        return f"{done:,} / {total:,} tokens"
    return f"{size(done)} / {size(total)}"
