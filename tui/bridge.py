"""The only place that knows threads: one engine thread, its jobs, its events as few messages.

The interface calls `submit`, `stop` and `close` from its event loop. The engine thread takes jobs
one after another; events of a job go into a mailbox that keeps order, joins neighbouring text and
keeps only the newest figure of each kind. The loop empties it at most every `INTERVAL` seconds
(less often when `pace` says that showing it is dear) into one call of `deliver`; nothing runs
while nothing happens. After `close` nothing is delivered. The thread is a daemon: an engine that
does not end in time cannot hold the program.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import Interrupted, RetrolocalError
from .engine import Advanced, Engine, Event, Measured, Wrote

INTERVAL = 0.1
"""Seconds between two deliveries; longer where showing them costs much."""
LONGEST = 0.5
SHARE = 0.1
"""Of the interpreter's time that showing what arrives may take from the engine."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a job: what it returned, or why it did not."""

    result: object = None
    error: BaseException | None = None


Work = Callable[[Engine, "Job"], object]


class Job:
    """One call of the engine; the `Control` that it is given."""

    def __init__(self, work: Work, emit: Callable[[Job, Event], None]) -> None:
        self.work = work
        self._emit = emit
        self._stop = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def emit(self, event: Event) -> None:
        self._emit(self, event)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event and the job it belongs to."""

    job: Job
    event: Event | Finished


class Bridge:
    def __init__(self, engine: Engine, deliver: Callable[[Sequence[Arrival]], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._mail: list[Arrival] = []
        self._awaited = False
        self._closed = False
        self._last = 0.0
        self._interval = INTERVAL
        self._running: Job | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Adds a job; `work` is called with the engine and the job, on the engine's thread."""
        job = Job(work, self._put)
        self._jobs.put(job)
        return job

    def stop(self, job: Job) -> None:
        """Ends a job soon; one that has not begun ends as Interrupted without beginning."""
        job.stop()
        with self._lock:
            running = self._running is job
        if running:
            self._engine.stop()

    def pace(self, cost: float) -> None:
        """What showing the last delivery cost, in seconds of CPU."""
        self._interval = min(LONGEST, max(INTERVAL, cost / SHARE))

    def close(self) -> None:
        """Ends the running job and the thread soon; waits for neither (see `join`)."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            running = self._running
        if running is not None:
            self.stop(running)
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        """Waits for the thread after `close`; False when it goes on."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if self._closed:
                    break
                self._running = job
            finished = self._do(job)
            with self._lock:
                self._running = None
            self._put(job, finished)
        self._engine.close()

    def _do(self, job: Job) -> Finished:
        if job.stopped:
            return Finished(error=Interrupted("stopped before it began"))
        try:
            return Finished(result=job.work(self._engine, job))
        except RetrolocalError as error:
            return Finished(error=error)
        # Whatever else an engine raises is shown in the conversation; the thread must go on.
        except Exception as error:
            _LOG.exception("the engine failed")
            return Finished(error=error)

    def _put(self, job: Job, event: Event | Finished) -> None:
        with self._lock:
            if self._closed:
                return
            _add(self._mail, Arrival(job, event))
            if self._awaited:
                return
            self._awaited = True
        self._loop.call_soon_threadsafe(self._schedule)

    def _schedule(self) -> None:
        self._loop.call_later(max(0.0, self._last + self._interval - time.monotonic()), self._empty)

    def _empty(self) -> None:
        with self._lock:
            mail, self._mail, self._awaited = self._mail, [], False
            closed = self._closed
        self._last = time.monotonic()
        if mail and not closed:
            self._deliver(mail)


def _add(mail: list[Arrival], new: Arrival) -> None:
    """Adds an event, joined with the last one where that says the same."""
    last = mail[-1] if mail and mail[-1].job is new.job else None
    match (last.event if last else None), new.event:
        case Wrote(before), Wrote(text):
            mail[-1] = Arrival(new.job, Wrote(before + text))
        case Advanced(work=before), Advanced(work=now) if before == now:
            mail[-1] = new
        case _, Measured():
            mail[:] = [a for a in mail if not isinstance(a.event, Measured)]
            if mail and mail[-1].job is new.job and isinstance(mail[-1].event, Wrote):
                # Figures may overtake text, so that text before and after them stays together.
                mail.insert(len(mail) - 1, new)
            else:
                mail.append(new)
        case _:
            mail.append(new)
