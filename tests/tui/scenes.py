"""Screens worth looking at, each reached by events and keys: for snapshots and for the README.

The text and the figures are made up; the engine behind them is the fake one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fakes import FakeEngine, Stage, a_source, an_answer, an_opening, play

from retrolocal.errors import Interrupted, MemoryLimitError
from retrolocal.tui.engine import (
    Advanced,
    Began,
    CacheFigures,
    DocumentFacts,
    DocumentsRead,
    Download,
    Measured,
    Meter,
    NeedsDownload,
    Wrote,
)

PARAGRAPHS = (
    "Hark ye yet again, the little lower layer. All visible objects, man, are but as pasteboard "
    "masks. But in each event, in the living act, the undoubted deed, there, some unknown but "
    "still reasoning thing puts forth the mouldings of its features from behind the unreasoning "
    "mask. If man will strike, strike through the mask!",
    "How can the prisoner reach outside except by thrusting through the wall? To me, the white "
    "whale is that wall, shoved near to me. Sometimes I think there's naught beyond. But 'tis "
    "enough. He tasks me; he heaps me; I see in him outrageous strength.",
    "“Vengeance on a dumb brute!” cried Starbuck, “that simply smote thee from blindest "
    "instinct! Madness! To be enraged with a dumb thing, Captain Ahab, seems blasphemous.”",
)
BOOK = "\n\n".join(PARAGRAPHS[number % 3] for number in range(900))
QUESTION = "Where does Ahab first explain why he hunts the whale?"
ANSWER = (
    "On the **quarter-deck**, before the whole crew:\n\n"
    "1. he nails a gold ounce to the mast,\n"
    "2. when Starbuck calls vengeance on a dumb brute blasphemous, he answers that the whale is "
    "*the wall shoved near to him*.\n\n"
    "> If man will strike, strike through the mask!\n\n"
    "He comes back to it alone at the cabin window.\n"
)
FIGURES = CacheFigures(
    kind="wave",
    tokens=320_528,
    steady_tokens=1_092,
    clusters=19_400,
    retrieved_tokens=5_120.0,
    cache_bytes=9_800_000_000,
    index_bytes=640_000_000,
    bytes_per_step=41_000_000,
    mass_exact=0.973,
    mass_estimated=0.027,
)
MEMORY = (Meter("RAM", 21_400_000_000, 64_000_000_000),)


def documents() -> tuple[DocumentFacts, ...]:
    pages = tuple((number + 1, number * len(BOOK) // 600) for number in range(600))
    return (
        DocumentFacts(name="moby-dick.pdf", text=BOOK, path="/books/moby-dick.pdf", pages=pages),
        DocumentFacts(name="letters.md", text="Dear sir,\n" * 800, path="/books/letters.md"),
    )


async def loading(stage: Stage) -> None:
    call = await stage.call("open")
    call.emit(DocumentsRead(stage.engine.documents))
    call.emit(Began("loading", "some/model"), Advanced("loading", 4_100_000_000, 15_200_000_000))
    await stage.until(lambda: stage.chat.desk.activity.total)
    await stage.pilot.press(*"Who is Ahab?".replace(" ", "_").replace("_", " "), "enter")
    await stage.pilot.pause()


async def prefilling(stage: Stage) -> None:
    call = await stage.call("open")
    call.emit(DocumentsRead(stage.engine.documents))
    call.give(_opening())
    read = await stage.call("read")
    read.emit(Began("prefilling"))
    for step in range(15):
        read.emit(Advanced("prefilling", step * 8192, 312_408))
        await stage.until(lambda step=step: stage.chat.desk.activity.done == step * 8192)  # type: ignore[misc]
        stage.clock.now += 4 + step * 0.4
    stage.chat.ask(QUESTION)
    await stage.pilot.pause()


async def paused(stage: Stage) -> None:
    call = await stage.call("open")
    call.emit(DocumentsRead(stage.engine.documents))
    call.give(_opening())
    read = await stage.call("read")
    read.emit(Advanced("prefilling", 115_712, 312_408))
    await stage.until(lambda: stage.chat.desk.activity.done)
    await stage.pilot.press("escape")
    read.give(Interrupted("stopped"))
    await stage.until(lambda: stage.chat.desk.activity.phase == "paused")


async def waiting(stage: Stage) -> None:
    await _ready(stage)
    await stage.ask(QUESTION)
    stage.clock.now += 3
    stage.chat.status.show()


async def answering(stage: Stage) -> None:
    await _ready(stage)
    call = await stage.ask(QUESTION)
    stage.clock.now += 1
    call.emit(Wrote(ANSWER[:20]))
    await stage.until(lambda: stage.chat.desk.activity.phase == "answering")
    for count in (20, 52, 90, 121, 160):
        stage.clock.now += 1.7 + count % 3 / 10
        call.emit(Measured(FIGURES, MEMORY, count))
        await stage.until(lambda count=count: stage.chat.desk.activity.tokens == count)  # type: ignore[misc]
    call.emit(Wrote(ANSWER[20:]))
    await stage.until(lambda: stage.chat.desk.partial.answer == ANSWER)  # type: ignore[union-attr]
    await stage.pilot.pause()


async def too_small(stage: Stage) -> None:
    await answering(stage)
    await stage.pilot.resize_terminal(38, 12)
    await stage.pilot.pause()


async def stopping(stage: Stage) -> None:
    await answering(stage)
    await stage.pilot.press("escape")
    stage.clock.now += 2
    stage.chat.status.show()


async def answered(stage: Stage) -> None:
    await _ready(stage)
    document = stage.engine.documents[0]
    found = [document.text.index(words) for words in ("To me, the white", "If man will strike")]
    sources = (
        a_source(document, found[0], found[0] + 55, 0.41, 1),
        a_source(document, found[1], found[1] + 46, 0.22, 1),
        a_source(document, 155_300, 155_420, 0.06, 470),
    )
    call = await stage.ask(QUESTION)
    call.emit(Wrote(ANSWER), Measured(FIGURES, MEMORY, 212))
    call.give(an_answer(ANSWER, sources=sources))
    await stage.until(lambda: stage.chat.desk.turns)
    await stage.pilot.pause()


async def stopped(stage: Stage) -> None:
    await _ready(stage)
    call = await stage.ask(QUESTION)
    call.emit(Wrote(ANSWER[:90]))
    call.give(an_answer(ANSWER[:90], stop_reason="interrupted"))
    await stage.until(lambda: stage.chat.desk.turns)
    await stage.pilot.pause()


async def source(stage: Stage) -> None:
    await answered(stage)
    await stage.pilot.press("f3")
    await stage.until(lambda: stage.app.screen is not stage.chat)
    await stage.pilot.pause(0.2)


async def panel(stage: Stage) -> None:
    await answered(stage)
    await stage.pilot.press("f2")
    await stage.pilot.pause()


async def consent(stage: Stage) -> None:
    call = await stage.call("open")
    download = Download(
        model="Qwen/Qwen2.5-7B-Instruct-1M",
        total_bytes=15_200_000_000,
        free_bytes=212_000_000_000,
        folder=Path("/home/you/.cache/huggingface/hub"),
    )
    call.give(NeedsDownload(download))
    await stage.until(lambda: stage.chat.desk.activity.phase == "consent")
    await stage.pilot.pause()


async def failed(stage: Stage) -> None:
    call = await stage.call("open")
    call.give(
        MemoryLimitError(
            "some/model with 312,408 tokens needs about 25.9 GiB (weights 15.2, cache 9.8, "
            "workspace 0.9) and 24.0 GiB are free: close other programs or take a smaller model"
        )
    )
    await stage.until(lambda: stage.chat.desk.activity.phase == "failed")
    await stage.pilot.pause()


async def help_page(stage: Stage) -> None:
    await _ready(stage)
    await stage.pilot.press("f1")
    await stage.pilot.pause()


async def palette(stage: Stage) -> None:
    await _ready(stage)
    await stage.pilot.press("ctrl+p", *"copy")
    await stage.until(lambda: stage.app.screen is not stage.chat)
    await stage.pilot.pause(0.3)


async def chats(stage: Stage) -> None:
    folder = stage.app.state / "chats"
    folder.mkdir(parents=True)
    for number, title in enumerate(
        ("Who is Ahab?", "The sermon of [Father] Mapple", "日本語 title")
    ):
        chat = {
            "format": 1,
            "id": f"c{number}",
            "title": title,
            "created": "2026-02-01T10:00:00+00:00",
            "updated": f"2026-02-0{number + 1}T10:00:00+00:00",
            "model": "some/model",
            "documents": ["/books/moby-dick.pdf"],
            "turns": [{"question": "q", "answer": "a"}] * (number + 1),
        }
        (folder / f"c{number}.json").write_text(json.dumps(chat))
    await _ready(stage)
    await stage.pilot.press("f4")
    await stage.until(lambda: stage.app.screen is not stage.chat)
    await stage.pilot.pause()


async def leaving(stage: Stage) -> None:
    await answering(stage)
    await stage.pilot.press("ctrl+q")
    await stage.until(lambda: stage.app.screen is not stage.chat)
    await stage.pilot.pause()


async def saving(stage: Stage) -> None:
    await answered(stage)
    stage.engine.keeping.clear()
    await stage.pilot.press("ctrl+q")
    await stage.until(lambda: stage.chat.desk.activity.phase == "saving")
    stage.clock.now += 2
    stage.chat.status.show()


async def block_cache(stage: Stage) -> None:
    """A machine with a GPU whose clusters lie in RAM."""
    call = await stage.call("open")
    call.emit(DocumentsRead(stage.engine.documents))
    call.give(an_opening(model="Qwen/Qwen2.5-7B-Instruct-1M", device="cuda"))
    (await stage.call("read")).give(None)
    await stage.until(stage.resting)
    call = await stage.ask(QUESTION)
    call.emit(Wrote(ANSWER))
    memory = (Meter("GPU", 17_200_000_000, 24_000_000_000), *MEMORY)
    for count, hits in ((20, 0.52), (52, 0.71), (90, 0.88), (121, 0.93), (160, 0.91)):
        stage.clock.now += 1.7 + count % 3 / 10
        figures = replace(FIGURES, hit_ratio=hits, slow_bytes=41_000_000 * (1 - hits))
        call.emit(Measured(figures, memory, count))
        await stage.until(lambda count=count: stage.chat.desk.activity.tokens == count)  # type: ignore[misc]
    await stage.pilot.pause()


async def completing(stage: Stage) -> None:
    await _ready(stage)
    await stage.pilot.press("slash", "e")
    await stage.pilot.pause()


def themed(name: str) -> Callable[[Stage], Awaitable[None]]:
    async def scene(stage: Stage) -> None:
        stage.app.theme = name
        await answered(stage)

    return scene


async def _ready(stage: Stage) -> None:
    call = await stage.call("open")
    call.emit(DocumentsRead(stage.engine.documents))
    call.give(_opening())
    read = await stage.call("read")
    read.emit(Measured(FIGURES, MEMORY, 0))
    read.give(None)
    await stage.until(lambda: stage.chat.desk.activity.phase == "ready")
    await stage.pilot.pause()


def _opening() -> object:
    return an_opening(model="Qwen/Qwen2.5-7B-Instruct-1M")


@dataclass(frozen=True)
class Screen:
    """A scene at a size."""

    scene: Callable[[Stage], Awaitable[None]]
    size: tuple[int, int] = (110, 28)


SCREENS: dict[str, Screen] = {
    "loading": Screen(loading),
    "prefilling": Screen(prefilling),
    "paused": Screen(paused),
    "consent": Screen(consent),
    "waiting": Screen(waiting),
    "answering": Screen(answering),
    "answering-80x24": Screen(answering, (80, 24)),
    "answering-60x16": Screen(answering, (60, 16)),
    "answering-40x10": Screen(answering, (40, 10)),
    "stopping": Screen(stopping),
    "answered": Screen(answered),
    "answered-80x24": Screen(answered, (80, 24)),
    "stopped": Screen(stopped),
    "failed": Screen(failed),
    "failed-60x16": Screen(failed, (60, 16)),
    "source": Screen(source),
    "source-60x16": Screen(source, (60, 16)),
    "panel-80x24": Screen(panel, (80, 24)),
    "help": Screen(help_page, (110, 40)),
    "help-80x24": Screen(help_page, (80, 24)),
    "palette": Screen(palette),
    "chats": Screen(chats),
    "leaving": Screen(leaving),
    "saving": Screen(saving),
    "block-cache": Screen(block_cache),
    "completing": Screen(completing),
    "light": Screen(themed("textual-light")),
    "sixteen-colours": Screen(themed("ansi-dark")),
    "too-small": Screen(too_small),
}


def picture(name: str, state: Path) -> tuple[str, str]:
    """The screen as SVG and as text; where it is, it is Greenwich's time."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    screen = SCREENS[name]
    found: list[str] = []

    async def scene(stage: Stage) -> None:
        await screen.scene(stage)
        await stage.pilot.pause()
        found.append(stage.app.export_screenshot(title="retrolocal", simplify=True))
        found.append(stage.text())

    play(scene, state=state, size=screen.size, engine=FakeEngine(documents()))
    return found[0], found[1]
