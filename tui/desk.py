"""Who is to do what next: questions in a queue, one job at the engine, what its end means.

Everything happens on the event loop. The desk keeps the turns of the conversation exactly as the
engine has them; the view shows what it is told. A stopped answer is a turn, a question that was
stopped before its answer began is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import Interrupted, UsageError
from .activity import Activity
from .bridge import Arrival, Bridge, Finished, Job, Work
from .engine import (
    Advanced,
    Answer,
    Began,
    DocumentFacts,
    DocumentsRead,
    Download,
    Engine,
    Measured,
    NeedsDownload,
    Opened,
    Turn,
    Wrote,
)

Kind = Literal["open", "read", "documents", "turns", "ask"]


@dataclass(slots=True, eq=False)
class Ticket:
    """A question on its way."""

    text: str
    shown: str


class DeskView(Protocol):
    """What the desk tells."""

    def pass_on(self, arrivals: Sequence[Arrival]) -> None:
        """Has `deliver` called with these where an exception ends the application."""
        ...

    def opened(self, opened: Opened) -> None: ...
    def download_needed(self, download: Download) -> None: ...
    def documents_changed(self, documents: Sequence[DocumentFacts]) -> None: ...
    def measured(self, measured: Measured) -> None: ...
    def stage_began(self, event: Began) -> None:
        """Of opening the model or reading documents."""
        ...

    def stage_advanced(self, event: Advanced) -> None: ...
    def at_rest(self) -> None:
        """Opening or reading is over."""
        ...

    def sent(self, ticket: Ticket) -> None:
        """The engine has the question now."""
        ...

    def wrote(self, text: str) -> None: ...
    def answered(self, answer: Answer) -> None: ...
    def unanswered(self, ticket: Ticket) -> None:
        """The question did not become part of the conversation."""
        ...

    def failed(self, error: BaseException, retry: Callable[[], None] | None) -> None: ...
    def activity_changed(self) -> None: ...


class Desk:
    def __init__(self, engine: Engine, view: DeskView, *, clock: Callable[[], float]) -> None:
        self.activity = Activity()
        self.turns: list[Turn] = []
        self.documents: tuple[DocumentFacts, ...] = ()
        self.model: Opened | None = None
        self.queue: list[Ticket] = []
        self._view = view
        self._clock = clock
        self._bridge = Bridge(engine, view.pass_on)
        self._job: Job | None = None
        self._kind: Kind = "open"
        self._asked: Ticket | None = None
        self._written = ""
        self._unread = False

    def start(self, *, download: bool = False) -> None:
        """Opens the model, then reads the documents, then answers what was asked meanwhile."""
        self.activity.enter("starting", self._clock())
        self._begin("open", lambda engine, job: engine.open(job, download=download))

    def send(self, ticket: Ticket) -> None:
        """Asks when everything before is done; goes on reading where that was paused."""
        self.queue.append(ticket)
        self._next()

    def resume(self) -> None:
        """Goes on where reading was paused."""
        if self.activity.phase != "paused":
            return
        if self.model is None:
            self.start(download=True)
        else:
            self._next()

    def stop(self) -> bool:
        """Ends an answer or pauses reading; False when there is nothing to end."""
        if self._job is None or self.activity.phase == "stopping":
            return False
        if self._kind == "open" and self.activity.stage != "downloading":
            return False
        self._bridge.stop(self._job)
        self.activity.enter("stopping", self._clock())
        self._view.activity_changed()
        return True

    def take_back(self) -> Turn | None:
        """Takes the last turn out of the conversation; None when there is none.

        Raises UsageError while the engine works.
        """
        self._require_rest()
        if not self.turns:
            return None
        turn = self.turns.pop()
        self._tell_turns()
        return turn

    def set_turns(self, turns: Sequence[Turn]) -> None:
        """Another conversation about the same documents; raises UsageError while busy."""
        self._require_rest()
        self.turns = list(turns)
        self._tell_turns()

    def set_documents(self, paths: Sequence[str], turns: Sequence[Turn] | None = None) -> None:
        """Other documents; the conversation goes on, or consists of `turns` now.

        Raises UsageError while the engine works.
        """
        self._require_rest()
        if turns is not None:
            self.turns = list(turns)
        wanted, kept = tuple(paths), tuple(self.turns)

        def work(engine: Engine, job: Job) -> None:
            engine.set_turns(kept)
            engine.set_documents(wanted, job)

        self.activity.enter("starting", self._clock())
        self._begin("documents", work)

    def close(self) -> Bridge:
        """Ends everything; the bridge is there to be waited for."""
        self._job = None
        self._bridge.close()
        return self._bridge

    @property
    def at_rest(self) -> bool:
        """Whether the engine has nothing to do."""
        return self._job is None

    @property
    def partial(self) -> Turn | None:
        """The question that is being answered, with what there is of the answer."""
        if self._asked is None or not self._written:
            return None
        return Turn(self._asked.text, self._written)

    def _require_rest(self) -> None:
        if self.model is None:
            raise UsageError("the model is not loaded yet; wait until it is")
        if self._job is not None:
            raise UsageError("an answer or a document is being worked on; stop it first (Esc)")

    def _tell_turns(self) -> None:
        turns = tuple(self.turns)
        self._begin("turns", lambda engine, job: engine.set_turns(turns))

    def _begin(self, kind: Kind, work: Work) -> None:
        self._kind = kind
        self._job = self._bridge.submit(work)
        self._view.activity_changed()

    def _next(self) -> None:
        self.activity.queued = len(self.queue)
        if self._job is not None or self.model is None:
            self._view.activity_changed()
            return
        if self._unread:
            self.activity.enter("starting", self._clock())
            self._begin("read", lambda engine, job: engine.read_documents(job))
        elif self.queue:
            self._ask(self.queue.pop(0))
        else:
            self.activity.enter("ready", self._clock())
            self._view.activity_changed()

    def _ask(self, ticket: Ticket) -> None:
        self.activity.queued = len(self.queue)
        self.activity.enter("waiting", self._clock())
        self._asked, self._written = ticket, ""
        self._begin("ask", lambda engine, job: engine.ask(ticket.text, job))
        self._view.sent(ticket)

    def shown(self, cost: float) -> None:
        """What was delivered is on the screen, at this many seconds of CPU."""
        self._bridge.pace(cost)

    def deliver(self, arrivals: Sequence[Arrival]) -> None:
        """Takes what the engine told."""
        for arrival in arrivals:
            # A job that was given up may still say something; nobody listens.
            if arrival.job is self._job:
                self._take(arrival)
        self._view.activity_changed()

    def _take(self, arrival: Arrival) -> None:
        now = self._clock()
        match arrival.event:
            case Began() as event:
                self.activity.began_stage(event, now)
                self._view.stage_began(event)
            case Advanced() as event:
                self.activity.advanced(event, now)
                if self._kind != "ask":
                    self._view.stage_advanced(event)
            case DocumentsRead(documents):
                self.documents = documents
                self._view.documents_changed(documents)
            case Measured() as event:
                self.activity.tokens = event.generated_tokens
                self._view.measured(event)
            case Wrote(text):
                self._written += text
                self.activity.wrote(now)
                self._view.wrote(text)
            case Finished(result, None):
                self._job = None
                self._succeeded(result)
            case Finished(_, error) if error is not None:
                self._job = None
                self._ended_by(error)

    def _succeeded(self, result: object) -> None:
        if self._kind in ("open", "read", "documents"):
            self._view.at_rest()
        match self._kind, result:
            case "open", Opened() as opened:
                self.model = opened
                self._unread = bool(self.documents)
                self._view.opened(opened)
            case "ask", Answer() as answer:
                assert self._asked is not None
                self.turns.append(Turn(self._asked.text, answer.text))
                self._asked = None
                self._view.answered(answer)
            case (("read" | "documents"), _):
                self._unread = False
        self._next()

    def _ended_by(self, error: BaseException) -> None:
        if self._kind == "ask" and self._asked is not None:
            ticket, self._asked = self._asked, None
            self._view.unanswered(ticket)
            if not isinstance(error, Interrupted):
                self._view.failed(error, None)
            self._next()
        elif isinstance(error, NeedsDownload):
            self.activity.enter("consent", self._clock())
            self._view.download_needed(error.download)
        elif isinstance(error, Interrupted):
            self._pause()
        else:
            self._fail(error)

    def _pause(self) -> None:
        done, total = self.activity.done, self.activity.total
        kept = "complete" if self.activity.stage == "downloading" else "read"
        self._unread = True
        self.activity.enter("paused", self._clock())
        self.activity.done, self.activity.total = done, total
        share = f"at {done / total:.0%}, " if total else ""
        self.activity.kept = f"{share}what was {kept} is kept"

    def _fail(self, error: BaseException) -> None:
        if self.model is None:
            self.activity.enter("failed", self._clock())
            self._view.failed(error, self.start)
        elif self._kind == "read":
            self.activity.enter("failed", self._clock())
            self._view.failed(error, self._next)
        else:
            self._view.failed(error, None)
            self._next()
