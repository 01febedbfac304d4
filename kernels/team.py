"""Threads that run one function together: short pieces of compiled work, many times a second.

Schedulers may put a thread that is woken beside the one that woke it, on the same processor, where
it waits for a millisecond or two: longer than the work takes. So helpers keep off the processor
that the caller is on.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

Member = Callable[[int], None]
"""Does one member's share; members are numbered from 0, which is the caller."""


def together(members: int, work: Member) -> None:
    """work(0) here and work(1) ... work(members - 1) on other threads, at the same time.

    Raises what a member raised, once all have ended.
    """
    if members == 1:
        work(0)
        return
    _team(members).run(work)


@functools.cache
def _team(members: int) -> _Team:
    return _Team(members - 1)


class _Team:
    """Helpers sleep on queues of their own; callers on different threads take turns with them."""

    def __init__(self, helpers: int) -> None:
        self._orders: list[SimpleQueue[tuple[Member, SimpleQueue[BaseException | None]]]] = []
        self._processor = -1
        self._allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set()
        self._threads = []
        for number in range(1, helpers + 1):
            self._orders.append(SimpleQueue())
            thread = threading.Thread(
                target=self._serve, args=(number,), name=f"wave-attention-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def run(self, work: Member) -> None:
        self._keep_off(current_processor())
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        for orders in self._orders:
            orders.put((work, ended))
        try:
            work(0)
        finally:
            failures = [ended.get() for _ in self._orders]
        for failure in failures:
            if failure is not None:
                raise failure

    def _serve(self, number: int) -> None:
        orders = self._orders[number - 1]
        while True:
            work, ended = orders.get()
            try:
                work(number)
            except BaseException as failure:
                ended.put(failure)
            else:
                ended.put(None)

    def _keep_off(self, processor: int) -> None:
        others = self._allowed - {processor}
        if processor == self._processor or not others or sys.platform != "linux":
            return
        self._processor = processor
        for thread in self._threads:
            if thread.native_id is not None:
                os.sched_setaffinity(thread.native_id, others)


def _processor_function() -> Callable[[], int]:
    if sys.platform != "linux":
        return lambda: -1
    function = ctypes.CDLL(None).sched_getcpu
    function.argtypes, function.restype = (), ctypes.c_int
    return function


current_processor = _processor_function()
"""Number of the processor that the calling thread is on; -1 where that is not known."""
