"""Threads that work together: everyone works once, failures arrive, callers may be many."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

team = pytest.importorskip("retrolocal.kernels.team")
current_processor, together, together_compiled = (
    team.current_processor,
    team.together,
    team.together_compiled,
)
add_at = importlib.import_module("retrolocal.kernels.jit_numba").add_at


@pytest.mark.parametrize("members", [1, 2, 5])
def test_every_member_works_once_on_its_own_thread(members: int) -> None:
    seen: list[tuple[int, int]] = []
    everyone = threading.Barrier(members, timeout=60)

    def work(number: int) -> None:
        everyone.wait()
        seen.append((number, threading.get_ident()))

    for _ in range(3):
        seen.clear()
        together(members, work)
        assert sorted(number for number, _ in seen) == list(range(members))
        assert len({thread for _, thread in seen}) == members
        assert dict(seen)[0] == threading.get_ident()


@pytest.mark.parametrize("guilty", [0, 1, 2])
def test_a_members_failure_reaches_the_caller_and_the_team_goes_on(guilty: int) -> None:
    ended: list[int] = []

    def work(number: int) -> None:
        if number == guilty:
            raise ValueError(number)
        ended.append(number)

    with pytest.raises(ValueError, match=str(guilty)):
        together(3, work)
    assert sorted(ended) == [number for number in range(3) if number != guilty]
    together(3, ended.append)
    assert len(ended) == 5


def test_callers_on_many_threads() -> None:
    def call(value: int) -> list[int]:
        seen: list[int] = []
        together(3, lambda number: seen.append(10 * value + number))
        return sorted(seen)

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(call, range(50)))
    assert found == [[10 * value + number for number in range(3)] for value in range(50)]


@pytest.mark.skipif(sys.platform != "linux", reason="processors are asked for on Linux only")
def test_helpers_keep_off_the_callers_processor() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one processor only")
    may: dict[int, set[int]] = {}
    together(4, lambda number: None)

    def work(number: int) -> None:
        may[number] = os.sched_getaffinity(0)

    try:
        for processor in sorted(allowed)[:2]:
            os.sched_setaffinity(0, {processor})
            assert current_processor() == processor
            together(4, work)
            assert processor not in may[1] | may[2] | may[3]
    finally:
        os.sched_setaffinity(0, allowed)


PIECES = 200


def take_pieces(words, member):
    """Word 0: pieces begun; word 1 + i: how often piece i was done; then: pieces of each member."""
    piece = add_at(words, 1)
    while piece < PIECES:
        add_at(words + 8 * (1 + piece), 1)
        add_at(words + 8 * (1 + PIECES + member), 1)
        piece = add_at(words, 1)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_compiled_pieces_are_done_once_whoever_comes(members: int) -> None:
    for pause in (0.0, 0.0, 0.0, 0.002, 0.0):  # helpers fall asleep in between, or do not
        time.sleep(pause)
        words = np.zeros(1 + PIECES + members, np.int64)
        together_compiled(members, take_pieces, words.ctypes.data)
        assert (words[1 : 1 + PIECES] == 1).all()
        assert words[1 + PIECES :].sum() == PIECES


def test_both_kinds_of_work_in_turn_from_many_threads() -> None:
    def call(value: int) -> bool:
        words, seen = np.zeros(1 + PIECES + 3, np.int64), []
        together_compiled(3, take_pieces, words.ctypes.data)
        together(3, seen.append)
        return bool((words[1 : 1 + PIECES] == 1).all()) and sorted(seen) == [0, 1, 2]

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(200)))


def test_an_idle_team_sleeps() -> None:
    together(3, lambda number: None)
    helpers = team._team(3)
    deadline = time.monotonic() + 60
    while not (helpers._states == team.ASLEEP).all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    together(3, lambda number: None)


@pytest.mark.skipif(sys.platform != "linux", reason="helpers go where they like")
def test_helpers_that_may_not_be_moved_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: int, processors: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    seen: list[int] = []
    team._Team(2).run(seen.append)
    assert sorted(seen) == [0, 1, 2]
