"""Threads that run one function together: short pieces of compiled work, many times a second.

Schedulers may put a thread that is woken beside the one that woke it, on the same processor, where
it waits for a millisecond or two: longer than the work takes. So helpers keep off the processor
that the caller is on. Waking a thread takes 50 to 100 us, as long as a small product does: so
helpers look for the next order for a while before they sleep; an idle team costs nothing.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from .jit_numba import task as compiled_task
from .team_numba import (
    ASLEEP,
    BOX,
    ORDERED,
    STATE,
    await_all,
    ended,
    lead,
    order,
    serve,
    wait,
)

Member = Callable[[int], None]
"""Does one member's share; members are numbered from 0, which is the caller."""
Task = Callable[[int, int], None]
"""Compiled by numba, of the address of its words and a member: does pieces of work that no other
member has begun until there are none, so that it does not matter how many members come."""

SPIN_SECONDS = 500e-6
"""How long helpers look for the next order: the gaps between the products of a step are shorter."""


def together(members: int, work: Member) -> None:
    """work(0) here and work(1) ... work(members - 1) on other threads, at the same time.

    Raises what a member raised, once all have ended.
    """
    if members == 1:
        work(0)
        return
    _team(members).run(work)


def together_compiled(members: int, task: Task, words: int) -> None:
    """task(words, 0) here, and task(words, 1) ... task(words, members - 1) on threads that come.

    A helper that is busy elsewhere or has yet to wake is not waited for, and nobody needs Python's
    lock. When this returns or raises, nobody uses any longer what `words` is the address of.
    """
    if members == 1:
        lead(0, 0, compiled_task(task).address, words, 0, 0)
        return
    _team(members).run_compiled(compiled_task(task).address, words)


@functools.cache
def _team(members: int) -> _Team:
    return _Team(members - 1)


class _Team:
    """Helpers take orders from boxes of their own; callers on different threads take turns."""

    def __init__(self, helpers: int) -> None:
        self._helpers = helpers
        self._turn = threading.Lock()
        self._room = np.full((helpers, BOX), ASLEEP)
        self._states = self._room[:, STATE]
        self._boxes = int(self._room.ctypes.data)
        self._wake = [threading.Event() for _ in range(helpers)]
        self._work: Member = _nothing
        self._failures: list[BaseException] = []
        self._give_way = give_way()
        self._rounds = _rounds(self._give_way)
        self._processor = -1
        self._allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set()
        self._threads = []
        for number in range(1, helpers + 1):
            thread = threading.Thread(
                target=self._serve, args=(number,), name=f"wave-attention-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def run(self, work: Member) -> None:
        with self._turn:
            self._work, self._failures = work, []
            self._keep_off(current_processor())
            try:
                if order(self._boxes, self._helpers, 0, 0):
                    self._wake_all()
                work(0)
            finally:
                if (self._states == ORDERED).any():
                    self._wake_all()
                await_all(self._boxes, self._helpers, self._rounds, self._give_way)
                self._work = _nothing
            failures = self._failures
        for failure in failures:
            raise failure

    def run_compiled(self, address: int, words: int) -> None:
        with self._turn:
            self._keep_off(current_processor())
            if (self._states == ASLEEP).any():
                self._wake_all()
            # In one call, so that not even Ctrl-C comes between an order and its end.
            lead(self._boxes, self._helpers, address, words, self._rounds, self._give_way)

    def _wake_all(self) -> None:
        for wake in self._wake:
            wake.set()

    def _serve(self, number: int) -> None:
        place, wake = self._boxes + 8 * BOX * (number - 1), self._wake[number - 1]
        while True:
            wake.wait()
            wake.clear()
            while serve(place, number, self._rounds, self._give_way):
                try:
                    self._work(number)
                except BaseException as failure:
                    self._failures.append(failure)
                ended(place)

    def _keep_off(self, processor: int) -> None:
        others = self._allowed - {processor}
        if processor == self._processor or not others or sys.platform != "linux":
            return
        self._processor = processor
        for thread in self._threads:
            if thread.native_id is not None:
                # Where that is not allowed the work is done all the same.
                with suppress(OSError):
                    os.sched_setaffinity(thread.native_id, others)


def _nothing(number: int) -> None:
    """Stands where nothing is to be done, so that what was done can be let go."""


@functools.cache
def _rounds(give_way: int) -> int:
    """Of waiting in compiled code that take `SPIN_SECONDS`."""
    tried, least = 1 << 8, math.inf
    wait(1, give_way)
    for _ in range(3):
        began = time.perf_counter()
        wait(tried, give_way)
        least = min(least, time.perf_counter() - began)
    return int(tried * SPIN_SECONDS / least)


@functools.cache
def give_way() -> int:
    """Address of what lets other threads go first; 0 where that is not known."""
    if os.name != "posix":
        return 0
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0


def _processor_function() -> Callable[[], int]:
    if sys.platform != "linux":
        return lambda: -1
    function = ctypes.CDLL(None).sched_getcpu
    function.argtypes, function.restype = (), ctypes.c_int
    return function


current_processor = _processor_function()
"""Number of the processor that the calling thread is on; -1 where that is not known."""
