"""Threads that read ahead, behind a bounded queue. They know jobs, not clusters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

THREADS = 2
"""Blocks are announced by the chunk, so few keep a disk busy; more take time from compute."""
QUEUE = 256
"""Jobs that may wait. What is predicted beyond that would come too late."""

Job = Callable[[], None]


class Prefetcher:
    """N threads that do jobs in the order they were offered; one for all layers of a model.

    *Who may call what.* `offer` and `close` may be called by any thread, jobs included; no call
    ever waits for a job but `close`, which therefore must not be called by a job.

    *Order.* What the offering thread did before `offer` is visible to the job. Jobs begin in the
    order they were offered; with several threads they end in any. Whatever a job shares with
    others it has to lock itself.

    *Failures.* A job that raises ends, its thread goes on. What it raised is kept, the first of
    several, and raised once by `close`; a job whose caller should hear earlier catches it itself,
    as those of `WaveBuffer` do.

    *close* refuses new jobs, drops those that have not begun, and waits for those that have, as
    long as they take. Then no thread is left. A second call does nothing.
    """

    def __init__(self, threads: int = THREADS, queue: int = QUEUE) -> None:
        """With no threads every offer is refused."""
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._room = queue if threads else 0
        self._closed = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._serve, name=f"prefetch-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def offer(self, *jobs: Job) -> int:
        """How many of these, from the first on, there was room for; never waits."""
        with self._changed:
            room = 0 if self._closed else self._room - len(self._waiting)
            taken = jobs[: max(0, room)]
            self._waiting.extend(taken)
            self._changed.notify(len(taken))
            return len(taken)

    def close(self) -> None:
        """See the class; raises what a job raised."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._waiting.popleft()
            try:
                job()
            except BaseException as failure:
                if self._failure is None:
                    self._failure = failure
            # The job may hold on to a buffer that nobody else wants any more.
            del job
