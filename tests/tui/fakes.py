"""An engine that does what a test tells it, one gate at a time, and builders around it.

Nothing sleeps: the engine's thread waits at gates which the test opens, and the test waits for
what it wants to see.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from textual.pilot import Pilot

from retrolocal.errors import Interrupted
from retrolocal.tui.app import ChatApp
from retrolocal.tui.chat_screen import ChatScreen
from retrolocal.tui.engine import (
    Answer,
    ChatSettings,
    Control,
    DocumentFacts,
    DocumentsRead,
    Event,
    Measured,
    Opened,
    Source,
    Turn,
    Wrote,
)

_WAIT = Pilot._wait_for_screen
PATIENCE = 60.0
"""Seconds after which something that never happens fails a test."""


@dataclass
class Call:
    """One call of the engine, in the hands of the test."""

    name: str
    argument: object
    control: Control
    over: threading.Event
    """Set when the test has ended."""
    _steps: queue.SimpleQueue[object] = field(default_factory=queue.SimpleQueue)
    stopped: threading.Event = field(default_factory=threading.Event)

    def emit(self, *events: Event) -> None:
        """The engine tells these, in order."""
        for event in events:
            self._steps.put(event)

    def give(self, result: object) -> None:
        """The call returns this, or raises it."""
        self._steps.put(_Result(result))

    def run(self) -> object:
        """On the engine's thread."""
        while True:
            try:
                step = self._steps.get(timeout=0.01)
            except queue.Empty:
                if self.control.stopped:
                    self.stopped.set()
                if self.over.is_set():
                    raise Interrupted("the test is over") from None
                continue
            if isinstance(step, _Result):
                if isinstance(step.value, BaseException):
                    raise step.value
                return step.value
            self.control.emit(step)  # type: ignore[arg-type]


@dataclass
class _Result:
    value: object


class FakeEngine:
    """Satisfies `Engine`; every call waits in `calls` until the test has dealt with it."""

    def __init__(self, documents: Sequence[DocumentFacts] = ()) -> None:
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.documents = tuple(documents)
        self.files: tuple[str, ...] = ()
        """That the model is opened with."""
        self.turns: list[tuple[Turn, ...]] = []
        self.kept: list[Path] = []
        self.reopened: list[Path] = []
        self.forgotten = 0
        self.figures: Measured | None = None
        """What is told when another conversation has begun."""
        self.keeps = True
        """Whether what the caches hold can be kept and taken up again."""
        self.keeping = threading.Event()
        """Cleared by a test in which keeping takes a while."""
        self.keeping.set()
        self.keep_error: Exception | None = None
        self.answering: dict[str, float | None] = {}
        self.stops = 0
        self.closed = threading.Event()
        self.over = threading.Event()

    def choose_files(self, paths: Sequence[str]) -> None:
        self.files = tuple(paths)

    def open(self, control: Control, *, download: bool) -> Opened:
        result = self._call("open", download, control)
        assert isinstance(result, Opened)
        return result

    def read_documents(self, control: Control) -> None:
        self._call("read", None, control)

    def set_documents(self, paths: Sequence[str], control: Control) -> None:
        self._call("documents", tuple(paths), control)

    def ask(self, question: str, control: Control) -> Answer:
        result = self._call("ask", question, control)
        assert isinstance(result, Answer)
        return result

    def change(self, answering: Mapping[str, float | None]) -> None:
        self.answering |= answering

    def set_turns(self, turns: Sequence[Turn]) -> None:
        self.turns.append(tuple(turns))

    def keep(self, chat: Path) -> bool:
        while not self.keeping.wait(0.01) and not self.over.is_set():
            pass
        if self.keep_error is not None:
            raise self.keep_error
        self.kept.append(chat)
        return self.keeps

    def reopen(self, chat: Path) -> bool:
        self.reopened.append(chat)
        return self.keeps

    def forget(self) -> None:
        self.forgotten += 1

    def measure(self, control: Control) -> None:
        if self.figures is not None:
            control.emit(self.figures)

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None:
        self.closed.set()

    def _call(self, name: str, argument: object, control: Control) -> object:
        call = Call(name, argument, control, self.over)
        self.calls.put(call)
        return call.run()


@dataclass
class FakeClock:
    """Seconds that pass only when a test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Stage:
    """An application on a fake engine, with what tests ask of it."""

    app: ChatApp
    pilot: Pilot[None]
    engine: FakeEngine
    clock: FakeClock

    @property
    def chat(self) -> ChatScreen:
        return self.app.chat

    async def until(self, wanted: Callable[[], object]) -> None:
        """Waits until something is true."""
        end = time.monotonic() + PATIENCE
        while not wanted():
            assert time.monotonic() < end, f"never happened; the screen:\n{self.text()}"
            await self.pilot.pause(0.01)

    async def call(self, name: str) -> Call:
        """The engine's next call, which must be this one."""
        end = time.monotonic() + PATIENCE
        while self.engine.calls.empty():
            assert time.monotonic() < end, f"{name} was never called"
            await self.pilot.pause(0.01)
        call = self.engine.calls.get()
        assert call.name == name
        return call

    async def ready(self, **opened: object) -> None:
        """Opens the model and reads the documents."""
        call = await self.call("open")
        if self.engine.documents:
            call.emit(DocumentsRead(self.engine.documents))
        call.give(an_opening(**opened))
        if self.engine.documents:
            (await self.call("read")).give(None)
        await self.until(lambda: self.chat.desk.activity.phase == "ready")

    async def type(self, text: str) -> None:
        """Types into whatever has the focus and sends it."""
        await self.pilot.press(*[_KEY_NAMES.get(c, c) for c in text], "enter")

    async def ask(self, text: str) -> Call:
        """Sends a question; the call that answers it."""
        self.chat.prompt.set_text(text)
        await self.pilot.press("enter")
        return await self.call("ask")

    async def answered(self, question: str, text: str, **facts: object) -> None:
        """A whole turn."""
        turns = len(self.chat.desk.turns)
        call = await self.ask(question)
        call.emit(Wrote(text))
        call.give(an_answer(text, **facts))
        await self.until(lambda: len(self.chat.desk.turns) == turns + 1)
        await self.pilot.pause()

    def resting(self) -> bool:
        """Whether the chat is ready for a question, whatever the status line says meanwhile."""
        return self.chat.desk.activity.phase == "ready"

    def status(self) -> str:
        """The status line as it would be at 200 columns."""
        return self.chat.status.content_for(200).plain

    def text(self) -> str:
        """The characters on the screen."""
        return screen_text(self.app)


_KEY_NAMES = {" ": "space", "/": "slash", ".": "full_stop", "_": "underscore", "-": "minus"}


def an_opening(**facts: object) -> Opened:
    known: dict[str, object] = {"model": "some/model", "max_tokens": 1_010_000, "device": "cpu"}
    return Opened(**{**known, **facts})  # type: ignore[arg-type]


def an_answer(text: str, **facts: object) -> Answer:
    known: dict[str, object] = {
        "stop_reason": "eos",
        "prompt_tokens": 100,
        "prefill_tokens": 10,
        "prefill_seconds": 0.9,
        "generated_tokens": 212,
        "generate_seconds": 11.5,
        "tokens_per_second": 18.4,
    }
    return Answer(text=text, **{**known, **facts})  # type: ignore[arg-type]


def a_document(name: str = "moby-dick.txt", text: str = "", pages: int = 0) -> DocumentFacts:
    text = text or "Call me Ishmael. Some years ago, never mind how long precisely.\n" * 200
    starts = tuple((number + 1, number * len(text) // pages) for number in range(pages))
    return DocumentFacts(name=name, text=text, path=f"/books/{name}", pages=starts)


def a_source(
    document: DocumentFacts, start: int, end: int, mass: float, page: int | None
) -> Source:
    text = document.text[start:end]
    return Source(document=document.name, page=page, start=start, end=end, text=text, mass=mass)


def play(
    scene: Callable[[Stage], object],
    *,
    state: Path,
    size: tuple[int, int] = (110, 28),
    documents: Sequence[DocumentFacts] = (),
    settings: ChatSettings | None = None,
    engine: FakeEngine | None = None,
) -> ChatApp:
    """Runs an asynchronous scene on an application; returns the application when it is over."""
    engine = engine or FakeEngine(documents)
    wait = functools.partialmethod(_WAIT, timeout=PATIENCE)
    Pilot._wait_for_screen = wait  # type: ignore[method-assign, assignment]
    settings = settings or ChatSettings(
        model="some/model", documents=tuple(document.path for document in documents)
    )

    async def run() -> ChatApp:
        clock = FakeClock()
        app = ChatApp(engine, settings, state, clock)
        app.animation_level = "none"
        async with app.run_test(size=size) as pilot:
            stage = Stage(app, pilot, engine, clock)
            await pilot.pause()
            try:
                await scene(stage)  # type: ignore[misc]
            finally:
                app.end_engine()
                engine.over.set()
        return app

    return asyncio.run(run())


def screen_text(app: ChatApp) -> str:
    """The characters on the screen, one line per row, without trailing spaces."""
    height = app.size.height
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(s.text for s in strip).rstrip() for strip in strips[:height])
