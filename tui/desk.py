"""Who is to do what next: questions in a queue, one job at the engine, what its end means.

Everything happens on the event loop. The desk keeps the turns of the conversation exactly as the
engine has them; the view shows what it is told. A stopped answer is a turn, a question that was
stopped before its answer began is not; it lies on the disk for as long as it may yet be one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..chats import place_of
from ..errors import DocumentError, Interrupted, UsageError
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
    Remarked,
    Turn,
    Wrote,
)

Kind = Literal["open", "read", "documents", "turns", "ask", "keep"]


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
    def note(self, text: str) -> None:
        """A remark in the conversation."""
        ...

    def stage_began(self, event: Began) -> None:
        """Of opening the model or reading documents."""
        ...

    def stage_advanced(self, event: Advanced) -> None: ...
    def at_rest(self) -> None:
        """Opening or reading is over."""
        ...

    def paused(self) -> None:
        """Opening or reading was stopped and can go on."""
        ...

    def withdrawn(self, tickets: Sequence[Ticket]) -> None:
        """These questions wait no longer: they were meant for another conversation."""
        ...

    def sent(self, ticket: Ticket) -> Callable[[], None]:
        """The engine gets the question now; what comes back is done before, on its thread."""
        ...

    def wrote(self, text: str) -> None: ...
    def answered(self, answer: Answer) -> None: ...
    def unanswered(self, ticket: Ticket) -> None:
        """The question did not become part of the conversation."""
        ...

    def failed(self, error: BaseException, retry: Callable[[], None] | None) -> None: ...
    def not_kept(self, error: BaseException) -> None:
        """What the caches hold of the conversation could not be written."""
        ...

    def not_reopened(self) -> None:
        """The next question reads the turns of the chat that was opened."""
        ...

    def activity_changed(self) -> None: ...


class Desk:
    def __init__(
        self,
        engine: Engine,
        view: DeskView,
        *,
        clock: Callable[[], float],
        files: Sequence[str] = (),
    ) -> None:
        self.activity = Activity()
        self.turns: list[Turn] = []
        self.documents: tuple[DocumentFacts, ...] = ()
        self.unreadable = ""
        """The file for which the model was not opened."""
        self.model: Opened | None = None
        self.queue: list[Ticket] = []
        self.changes: dict[str, float | None] = {}
        """What was changed of `Opened.answering`; None is the model's own value."""
        self._files = tuple(files)
        self._view = view
        self._clock = clock
        self._bridge = Bridge(engine, view.pass_on)
        self._job: Job | None = None
        self._kind: Kind = "open"
        self._asked: Ticket | None = None
        self._written = ""
        self._unkept = False
        """Whether there is an answer since the caches were last kept."""
        self._reopen: Path | None = None
        """Where what was kept of these turns lies; until they have been taken up."""
        self._after: Callable[[], None] | None = None
        """What is to be done when they have been kept now."""
        self._change: Callable[[], None] | None = None
        """Goes over to another conversation; waits until the model is open."""
        self._leave: tuple[Callable[[], Path | None], Callable[[], None]] | None = None

    def start(self, *, download: bool = False) -> None:
        """Opens the model, then reads the documents, then answers what was asked meanwhile."""
        files, self.unreadable = self._files, ""

        def work(engine: Engine, job: Job) -> Opened:
            engine.choose_files(files)
            return engine.open(job, download=download)

        self.activity.enter("starting", self._clock())
        self._begin("open", work)

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
        if self._kind in ("keep", "turns"):
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
        self.require_rest()
        if not self.turns:
            return None
        turn = self.turns.pop()
        turns = tuple(self.turns)
        self._begin("turns", lambda engine, job: engine.set_turns(turns))
        return turn

    def change_to(
        self,
        turns: Sequence[Turn],
        *,
        documents: Sequence[str] | None = None,
        old: Path | None = None,
        kept: Path | None = None,
    ) -> None:
        """Another conversation, about these documents (None: about the same ones).

        What the caches hold of this one is written to `old` first; what they held of the other
        one lies in `kept`. Before the model is open this waits for it. Raises UsageError while the
        engine does anything else.
        """
        if self.model is not None:
            self.require_rest()
        # At once: whoever saves the chat meanwhile must not take the old turns for its own.
        self.turns = list(turns)
        withdrawn, self.queue = self.queue, []
        self.activity.queued = 0
        if withdrawn:
            self._view.withdrawn(withdrawn)

        def change() -> None:
            self._reopen = kept
            if documents is None or tuple(documents) == self._places():
                if kept is not None:
                    self.activity.enter("reopening", self._clock())
                self._go_over()
            else:
                self._set_documents(documents, turns)

        if self.model is None:
            self._change = change
        else:
            self._keep_then(old, change)

    def set_documents(self, paths: Sequence[str]) -> None:
        """Other documents; the conversation goes on. Raises UsageError while the engine works.

        Where the model could not be opened it is opened again, with these.
        """
        if self.activity.phase == "failed" and self.model is None:
            self._files = tuple(paths)
            self.start()
            return
        self.require_rest()
        self._set_documents(paths, self.turns)

    def leave(self, place: Callable[[], Path | None], left: Callable[[], None]) -> None:
        """Ends the answer, keeps the conversation at `place()`, then calls `left`.

        Called again it does not wait.
        """
        waits = self._job is not None and self._kind in ("ask", "turns", "keep")
        if self._leave is not None or (self._job is not None and not waits):
            left()
            return
        self._leave = place, left
        self.activity.leaving = True
        self.queue.clear()
        if self._job is None:
            self._go()
        elif self._kind == "ask":
            self.stop()
        self._view.activity_changed()

    def close(self) -> Bridge:
        """Ends everything; the bridge is there to be waited for."""
        self._job = None
        self._bridge.close()
        return self._bridge

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the documents; before the model is open of the files that shall become some."""
        return self._files if self.model is None else tuple(one.path for one in self.documents)

    @property
    def at_rest(self) -> bool:
        """Whether the engine has nothing to do."""
        return self._job is None

    @property
    def partial(self) -> Turn | None:
        """The question that is being answered, with what there is of the answer, if anything."""
        if self._asked is None:
            return None
        return Turn(self._asked.text, self._written, "interrupted")

    def require_rest(self) -> None:
        """Raises UsageError while the engine works."""
        if self.model is None:
            raise UsageError("the model is not loaded yet; wait until it is")
        if self._job is not None:
            raise UsageError("an answer or a document is being worked on; stop it first (Esc)")

    def _places(self) -> tuple[str, ...]:
        """The documents as a chat that is kept names them."""
        return tuple(place_of(document.path) for document in self.documents)

    def _go_over(self) -> None:
        """To the turns of now, about the same documents."""
        # What was kept lies behind the documents: they have to be read before it is taken up.
        turns, kept = tuple(self.turns), None if self.activity.unread else self._reopen

        def work(engine: Engine, job: Job) -> bool | None:
            engine.set_turns(turns)
            return _take_up(engine, job, kept)

        self._begin("turns", work)

    def _set_documents(self, paths: Sequence[str], turns: Sequence[Turn]) -> None:
        self.turns = list(turns)
        wanted, of_now, kept = tuple(paths), tuple(turns), self._reopen

        def work(engine: Engine, job: Job) -> bool | None:
            engine.set_turns(of_now)
            engine.set_documents(wanted, job)
            return _take_up(engine, job, kept)

        self.activity.enter("starting", self._clock())
        self._begin("documents", work)

    def _read(self) -> None:
        kept = self._reopen

        def work(engine: Engine, job: Job) -> bool | None:
            engine.read_documents(job)
            return _take_up(engine, job, kept)

        self.activity.enter("starting", self._clock())
        self._begin("read", work)

    def _keep_then(self, place: Path | None, then: Callable[[], None]) -> None:
        """Keeps what the caches hold of the conversation, if it is new, then does `then`."""
        if place is None or not self._unkept:
            then()
            return
        self._after = then
        self.activity.enter("saving", self._clock())
        self._begin("keep", lambda engine, job: engine.keep(place))

    def _go(self) -> None:
        assert self._leave is not None
        place, left = self._leave
        self._keep_then(place(), left)

    def _begin(self, kind: Kind, work: Work) -> None:
        self._kind = kind
        self._job = self._bridge.submit(work)
        self._view.activity_changed()

    def _next(self) -> None:
        self.activity.queued = len(self.queue)
        if self._job is not None or self.model is None or self._leave is not None:
            self._view.activity_changed()
            return
        if self.activity.unread:
            self._read()
        elif self.queue:
            self._ask(self.queue.pop(0))
        else:
            self.activity.enter("ready", self._clock())
            self._view.activity_changed()

    def _ask(self, ticket: Ticket) -> None:
        self.activity.queued = len(self.queue)
        self.activity.enter("waiting", self._clock())
        self._asked, self._written = ticket, ""
        changes, before = dict(self.changes), self._view.sent(ticket)

        def work(engine: Engine, job: Job) -> Answer:
            before()
            if changes:
                engine.change(changes)
            return engine.ask(ticket.text, job)

        self._begin("ask", work)

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
                if self._kind != "ask":
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
            case Remarked(text):
                self._view.note(text)
            case Wrote(text):
                self._written += text
                self.activity.wrote(now)
                self._view.wrote(text)
            case Finished() as event:
                self._job = None
                self._finished(event)

    def _finished(self, event: Finished) -> None:
        if self._kind == "keep":
            self._kept(event.error)
        elif event.error is None:
            self._succeeded(event.result)
        else:
            self._ended_by(event.error)
        if self._leave is not None and self._job is None and self._kind != "keep":
            self._go()

    def _kept(self, error: BaseException | None) -> None:
        self._unkept = False
        then, self._after = self._after, None
        if error is not None:
            self._view.not_kept(error)
        if self._leave is not None:
            self._leave[1]()
        elif then is not None:
            then()

    def _succeeded(self, result: object) -> None:
        if self._kind in ("open", "read", "documents"):
            self._view.at_rest()
        match self._kind, result:
            case "open", Opened() as opened:
                self.model = opened
                self.activity.unread = bool(self.documents)
                self._view.opened(opened)
            case "ask", Answer() as answer:
                assert self._asked is not None
                turn = Turn(self._asked.text, answer.text, answer.stop_reason, answer.sources)
                self.turns.append(turn)
                self._asked = None
                self._unkept = True
                self._view.answered(answer)
            case (("read" | "documents"), _):
                self.activity.unread = False
        if self._kind in ("turns", "read", "documents") and not self.activity.unread:
            if self._reopen is not None and result is False:
                self._view.not_reopened()
            self._reopen = None
        change, self._change = self._change, None
        (self._next if change is None else change)()

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
        done, total, stage = self.activity.done, self.activity.total, self.activity.stage
        kept = "complete" if stage == "downloading" else "read"
        self.activity.unread = True
        self.activity.enter("paused", self._clock())
        self.activity.done, self.activity.total, self.activity.stage = done, total, stage
        self._view.paused()
        share = f"at {done / total:.0%}, " if total else ""
        self.activity.kept = f"{share}what was {kept} is kept"

    def _fail(self, error: BaseException) -> None:
        self._reopen = None
        if self.model is None:
            unreadable = isinstance(error, DocumentError) and self.activity.stage == "reading"
            self.unreadable = self.activity.about if unreadable else ""
            self.activity.enter("failed", self._clock())
            self._view.failed(error, self.start)
        elif self._kind == "read":
            self.activity.enter("failed", self._clock())
            self._view.failed(error, self._next)
        else:
            self._view.failed(error, None)
            self._next()


def _take_up(engine: Engine, job: Job, kept: Path | None) -> bool | None:
    """What was kept of the turns that were set; None where nothing can have been.

    What the caches held of another conversation is gone in any case, its figures too.
    """
    engine.forget()
    try:
        return None if kept is None else engine.reopen(kept)
    finally:
        engine.measure(job)
