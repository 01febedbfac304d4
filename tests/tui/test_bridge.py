"""Threads and messages: joined, in order, none after the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from fakes import PATIENCE, FakeEngine, an_answer
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.errors import Interrupted
from retrolocal.tui.bridge import Arrival, Bridge, Finished, Job, _add
from retrolocal.tui.engine import Advanced, Began, Event, Measured, Wrote


class Desk:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.batches: list[list[Arrival]] = []
        self.bridge = Bridge(self.engine, lambda batch: self.batches.append(list(batch)))

    @property
    def events(self) -> list[object]:
        return [arrival.event for batch in self.batches for arrival in batch]

    async def until(self, wanted: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not wanted():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)


def run(scene: Callable[[Desk], Awaitable[None]]) -> None:
    async def whole() -> None:
        desk = Desk()
        try:
            await scene(desk)
        finally:
            desk.bridge.close()
            assert await asyncio.to_thread(desk.bridge.join, PATIENCE)
            assert desk.engine.closed.is_set()

    asyncio.run(whole())


def test_a_thousand_pieces_in_one_moment_are_one_message() -> None:
    async def scene(desk: Desk) -> None:
        job = desk.bridge.submit(lambda engine, job: engine.ask("q", job))
        await desk.until(lambda: not desk.engine.calls.empty())
        call = desk.engine.calls.get()
        for number in range(1000):
            call.emit(Wrote(f"{number} "))
        call.give(an_answer("x"))
        # The loop does not run meanwhile: all of it waits in the mailbox.
        time.sleep(0.5)
        await desk.until(lambda: any(isinstance(e, Finished) for e in desk.events))
        assert len(desk.batches) <= 2
        texts = [event.text for event in desk.events if isinstance(event, Wrote)]
        assert "".join(texts) == "".join(f"{number} " for number in range(1000))
        assert len(texts) <= 2
        assert all(arrival.job is job for batch in desk.batches for arrival in batch)

    run(scene)


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.text("ab", min_size=1, max_size=3).map(Wrote),
    st.integers(0, 9).map(lambda n: Advanced("prefilling", n, 9)),
    st.integers(0, 9).map(lambda n: Measured(None, (), n)),
    st.just(Began("reading", "x")),
)


@given(st.lists(EVENTS, max_size=30))
def test_joining_loses_no_text_and_no_newest_figure(events: list[Event]) -> None:
    mail: list[Arrival] = []
    job = Job(lambda engine, job: None, lambda job, event: None)
    for event in events:
        _add(mail, Arrival(job, event))
    joined = [arrival.event for arrival in mail]

    def text(all_events: Sequence[object]) -> str:
        return "".join(event.text for event in all_events if isinstance(event, Wrote))

    assert text(joined) == text(events)
    measured = [event for event in events if isinstance(event, Measured)]
    assert [event for event in joined if isinstance(event, Measured)] == measured[-1:]
    began = [event for event in events if isinstance(event, Began)]
    assert [event for event in joined if isinstance(event, Began)] == began
    advanced = [event for event in events if isinstance(event, Advanced)]
    assert [event for event in joined if isinstance(event, Advanced)][-1:] == advanced[-1:]


def test_a_job_that_is_stopped_before_it_begins_never_begins() -> None:
    async def scene(desk: Desk) -> None:
        desk.bridge.submit(lambda engine, job: engine.ask("first", job))
        second = desk.bridge.submit(lambda engine, job: engine.ask("second", job))
        desk.bridge.stop(second)
        await desk.until(lambda: not desk.engine.calls.empty())
        assert desk.engine.stops == 0
        desk.engine.calls.get().give(an_answer("a"))
        await desk.until(lambda: len(desk.events) == 2)
        first, stopped = desk.events
        assert isinstance(first, Finished)
        assert isinstance(stopped, Finished)
        assert isinstance(stopped.error, Interrupted)
        assert desk.engine.calls.empty()

    run(scene)


@pytest.mark.parametrize("error", [ValueError("[/x]"), Interrupted("i"), MemoryError()])
def test_whatever_an_engine_raises_arrives_and_the_thread_goes_on(error: Exception) -> None:
    async def scene(desk: Desk) -> None:
        for _ in range(2):
            desk.bridge.submit(lambda engine, job: engine.ask("q", job))
            await desk.until(lambda: not desk.engine.calls.empty())
            desk.engine.calls.get().give(error)
        await desk.until(lambda: len(desk.events) == 2)
        assert [event.error for event in desk.events if isinstance(event, Finished)] == [error] * 2

    run(scene)


@pytest.mark.parametrize(("cost", "interval"), [(0.0, 0.1), (0.005, 0.1), (0.02, 0.2), (3.0, 0.5)])
def test_what_is_dear_to_show_is_delivered_less_often(cost: float, interval: float) -> None:
    async def scene(desk: Desk) -> None:
        desk.bridge.pace(cost)
        assert desk.bridge._interval == pytest.approx(interval)

    run(scene)


def test_nothing_is_delivered_after_the_end() -> None:
    async def scene(desk: Desk) -> None:
        desk.bridge.submit(lambda engine, job: engine.ask("q", job))
        await desk.until(lambda: not desk.engine.calls.empty())
        call = desk.engine.calls.get()
        call.emit(Wrote("late"))
        desk.bridge.close()
        assert desk.engine.stops == 1
        call.emit(Wrote("later"))
        call.give(an_answer("x"))
        assert await asyncio.to_thread(desk.bridge.join, PATIENCE)
        await asyncio.sleep(0.1)
        assert desk.batches == []

    run(scene)
