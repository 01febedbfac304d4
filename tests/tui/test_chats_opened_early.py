"""A chat is opened, or another one begun, while the model is still on its way."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeEngine, Stage, a_document, an_answer, an_opening, play

from retrolocal.chats import ChatStore, ChatTurn
from retrolocal.errors import Interrupted, ModelError
from retrolocal.tui.answer import Question
from retrolocal.tui.cards import Card
from retrolocal.tui.engine import (
    Advanced,
    Began,
    CacheFigures,
    DocumentsRead,
    Download,
    Measured,
    NeedsDownload,
    Turn,
    Wrote,
)


def keep_one(state: Path, *documents: str, title: str = "one") -> Path:
    """A chat on the disk; where what the caches held of it would lie."""
    store = ChatStore(state / "chats")
    chat = store.new("some/model", documents, title)
    turns = (ChatTurn(title, "first"),)
    saved = store.save(type(chat)(**{**_fields(chat), "turns": turns}))
    return store.cache_of(saved.id)


def _fields(chat: object) -> dict[str, object]:
    return {name: getattr(chat, name) for name in chat.__slots__}  # type: ignore[attr-defined]


async def open_first(stage: Stage) -> None:
    await stage.pilot.press("f4")
    await stage.until(lambda: stage.app.screen is not stage.chat)
    await stage.pilot.press("enter")
    await stage.until(lambda: stage.app.screen is stage.chat)


def test_a_chat_opened_while_the_model_is_looked_for_is_the_one_that_goes_on(state: Path) -> None:
    kept = keep_one(state)

    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(Began("looking", "builtin"))
        await stage.until(lambda: "looking for builtin" in stage.status())
        await open_first(stage)
        await stage.until(lambda: "first" in stage.text())
        assert "looking for builtin" in stage.text()
        await stage.type("next")
        call.give(an_opening())
        asked = await stage.call("ask")
        assert asked.argument == "next"
        assert stage.engine.turns == [(Turn("one", "first"),)]
        assert stage.engine.reopened == [kept]
        asked.emit(Wrote("second"))
        asked.give(an_answer("second"))
        await stage.until(stage.resting)
        await stage.until(lambda: "second" in stage.text())
        text = stage.text()
        assert text.index("first") < text.index("next") < text.index("second")

    play(scene, state=state)
    [chat] = ChatStore(state / "chats").list()
    assert [turn.answer for turn in chat.turns] == ["first", "second"]


def test_its_cache_is_taken_up_behind_the_documents_it_is_about(state: Path) -> None:
    book = a_document()
    kept = keep_one(state, book.path)

    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(DocumentsRead((book,)))
        await stage.until(lambda: stage.chat.desk.documents)
        await open_first(stage)
        call.give(an_opening())
        read = await stage.call("read")
        assert stage.engine.turns == [(Turn("one", "first"),)]
        assert stage.engine.reopened == []
        read.give(None)
        await stage.until(stage.resting)
        assert stage.engine.reopened == [kept]

    play(scene, state=state, documents=[book])


def test_a_chat_about_another_text_brings_that_text(state: Path) -> None:
    path = state.parent / "other.txt"
    path.write_text("other")
    keep_one(state, str(path))

    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        await open_first(stage)
        call.emit(DocumentsRead(stage.engine.documents))
        call.give(an_opening())
        documents = await stage.call("documents")
        assert documents.argument == (str(path),)

    play(scene, state=state, documents=[a_document()])


def test_the_last_choice_counts(state: Path) -> None:
    keep_one(state)

    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        await open_first(stage)
        await stage.until(lambda: "first" in stage.text())
        await stage.type("/new")
        await stage.until(lambda: "first" not in stage.text())
        call.give(an_opening())
        await stage.until(stage.resting)
        assert stage.engine.turns == [()]
        assert stage.engine.reopened == []

    play(scene, state=state)


def test_a_question_that_waits_goes_back_to_the_prompt(state: Path) -> None:
    keep_one(state)

    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        await stage.type("why")
        await stage.type("how")
        assert "2 queued" in stage.status()
        await open_first(stage)
        await stage.until(lambda: stage.chat.prompt.text == "why\nhow")
        assert "queued" not in stage.status()
        call.give(an_opening())
        await stage.until(stage.resting)
        assert stage.engine.calls.empty()
        assert [question.text for question in stage.chat.query(Question)] == ["one"]

    play(scene, state=state)


def test_consent_and_a_failure_stay_below_the_chat(state: Path) -> None:
    keep_one(state)
    download = Download(model="m", total_bytes=1, free_bytes=20, folder=Path("/c"))

    async def scene(stage: Stage) -> None:
        (await stage.call("open")).give(NeedsDownload(download))
        await stage.until(lambda: isinstance(stage.chat.focused, Card))
        await open_first(stage)
        await stage.until(lambda: "first" in stage.text())
        await stage.pilot.press("y")
        (await stage.call("open")).give(ModelError("no good"))
        await stage.until(lambda: "no good" in stage.text())
        await open_first(stage)
        await stage.until(lambda: isinstance(stage.chat.focused, Card))
        await stage.pilot.press("r")
        (await stage.call("open")).give(an_opening())
        await stage.until(stage.resting)
        assert stage.engine.turns == [(Turn("one", "first"),)]

    play(scene, state=state)


def test_a_paused_reading_is_said_to_be_paused_and_goes_on_as_one(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        def panel() -> str:
            lines = stage.text().splitlines()
            return next(line.split("│")[-1] for line in lines if "moby-dick.txt " in line[60:])

        call = await stage.call("open")
        call.emit(DocumentsRead(stage.engine.documents))
        call.give(an_opening())
        for done in (66_000, 132_000):
            read = await stage.call("read")
            read.emit(Began("prefilling"), Advanced("prefilling", done, 423_506))
            await stage.until(lambda done=done: f"{done:,} / 423,506 tokens" in stage.status())
            assert "◐" in panel()
            await stage.pilot.press("escape")
            await stage.until(read.stopped.is_set)
            assert "◐" in panel()
            read.give(Interrupted("stopped"))
            await stage.until(stage_paused(stage))
            assert f"‖ prefill paused                        at {done:,} / 423,506" in stage.text()
            assert "prefill done" not in stage.text()
            assert "◐" in panel()
            if done == 66_000:
                await stage.type("why")
        assert "1 queued" in stage.status()
        await stage.pilot.press("enter")
        read = await stage.call("read")
        read.emit(Began("prefilling"), Advanced("prefilling", 423_506, 423_506))
        read.give(None)
        (await stage.call("ask")).give(an_answer("because"))
        await stage.until(stage.resting)
        assert stage.text().count("prefill") == 1
        assert "✓ prefill done" in stage.text()
        assert "●" in panel()

    play(scene, state=state, documents=[a_document()])


def stage_paused(stage: Stage):  # type: ignore[no-untyped-def]
    return lambda: stage.chat.desk.activity.phase == "paused"


def test_a_refusal_does_not_outlast_what_it_was_about(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(DocumentsRead(stage.engine.documents))
        call.give(an_opening())
        read = await stage.call("read")
        read.emit(Advanced("prefilling", 10, 20))
        await stage.until(lambda: "prefill 50%" in stage.status())
        await stage.type("/new")
        await stage.until(lambda: "stop it first" in stage.status())
        stage.chat.prompt.set_text("")
        await stage.pilot.press("escape")
        assert "stop it first" not in stage.status()
        read.give(Interrupted("stopped"))
        await stage.until(stage_paused(stage))
        assert "paused at 50%" in stage.status()

    play(scene, state=state, documents=[a_document()])


FIGURES = CacheFigures(
    kind="wave",
    tokens=4_200,
    steady_tokens=1_092,
    clusters=190,
    retrieved_tokens=64.0,
    cache_bytes=9_000_000,
    index_bytes=640_000,
    bytes_per_step=41_000,
    mass_exact=0.973,
    mass_estimated=0.027,
)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_figures_are_those_of_the_chat_that_is_open(state: Path, keeps: bool) -> None:
    keep_one(state)
    engine = FakeEngine()

    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("long")
        call.emit(Measured(FIGURES, (), 212))
        call.give(an_answer("an answer"))
        await stage.until(lambda: "4,200 of 1,010,000 tokens" in stage.status())
        engine.keeps = keeps
        figures = type(FIGURES)(**{**_fields(FIGURES), "tokens": 77}) if keeps else None
        engine.figures = Measured(figures, (), 0)
        await stage.pilot.press("f4", "down")
        await stage.until(lambda: stage.app.screen is not stage.chat)
        await stage.pilot.press("enter")
        await stage.until(lambda: stage.app.screen is stage.chat)
        await stage.until(lambda: "first" in stage.text() and stage.resting())
        assert "4,200" not in stage.status()
        assert ("77 of 1,010,000 tokens" in stage.status()) == keeps
        assert ("keys and values" in stage.text()) == keeps
        assert "18.4 tok/s" not in stage.text()
        assert engine.forgotten == 1

    play(scene, state=state, engine=engine)
