"""The last question edited: its answer stays until the edited question is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Stage, a_document, an_answer, play

from retrolocal.tui.answer import Question
from retrolocal.tui.engine import Turn

NOTICE = "editing: Enter replaces the question and its answer, Esc keeps them"


async def edited(stage: Stage, draft: str = "") -> None:
    """Two turns, the second of which is edited."""
    await stage.ready()
    await stage.answered("one", "first")
    await stage.answered("two", "second")
    stage.chat.prompt.set_text(draft)
    await stage.pilot.press("alt+up", "alt+up", "e")
    await stage.until(lambda: NOTICE in stage.text())


async def send(stage: Stage, text: str) -> None:
    stage.chat.prompt.set_text(text)
    await stage.pilot.press("enter")
    await stage.pilot.pause()


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
@pytest.mark.parametrize("draft", ["", "half a question"])
def test_leaving_an_edit_changes_nothing(state: Path, key: str, draft: str) -> None:
    async def scene(stage: Stage) -> None:
        await edited(stage, draft)
        assert stage.chat.prompt.text == "two"
        assert stage.chat.focused is stage.chat.prompt.area
        assert "second" in stage.text()
        assert stage.chat.log_view.answers[-1].has_class("-edited")
        await stage.pilot.press("x", key)
        await stage.until(lambda: NOTICE not in stage.text())
        assert stage.chat.prompt.text == draft
        assert not stage.chat.query(".-edited")
        assert stage.chat.desk.turns == [Turn("one", "first"), Turn("two", "second")]
        assert stage.engine.calls.empty()
        assert (await stage.ask("three")).argument == "three"
        assert len(stage.chat.desk.turns) == 2
        assert "second" in stage.text()

    play(scene, state=state)


def test_sending_replaces_the_question_and_its_answer(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await edited(stage, "half a question")
        await send(stage, "two, better")
        call = await stage.call("ask")
        assert call.argument == "two, better"
        assert stage.engine.turns[-1] == (Turn("one", "first"),)
        assert NOTICE not in stage.text()
        assert "second" not in stage.text()
        assert stage.chat.prompt.text == "half a question"
        call.give(an_answer("third"))
        await stage.until(stage.resting)
        assert stage.chat.desk.turns == [Turn("one", "first"), Turn("two, better", "third")]
        assert [one.text for one in stage.chat.query(Question)] == ["one", "two, better"]

    play(scene, state=state)


def test_commands_do_not_end_an_edit_unless_the_question_goes(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await edited(stage)
        await send(stage, "/docs")
        assert NOTICE in stage.text()
        await send(stage, "/edit")
        assert stage.chat.prompt.text == "two"
        await send(stage, "/new")
        await stage.until(lambda: stage.chat.desk.turns == [] and stage.resting())
        assert NOTICE not in stage.text()
        await stage.answered("three", "third")
        assert stage.chat.desk.turns == [Turn("three", "third")]

    play(scene, state=state)


def test_asking_again_ends_an_edit_and_keeps_what_is_typed(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await edited(stage)
        await stage.pilot.press("x", "alt+up", "r")
        assert (await stage.call("ask")).argument == "two"
        assert NOTICE not in stage.text()
        assert stage.chat.prompt.text == "twox"

    play(scene, state=state)


def test_an_edit_that_cannot_be_sent_yet_stays_one(state: Path) -> None:
    path = state.parent / "a.txt"
    path.write_text("x")

    async def scene(stage: Stage) -> None:
        await edited(stage)
        await send(stage, f"/file {path}")
        call = await stage.call("documents")
        await send(stage, "two, better")
        assert "stop it first" in stage.status()
        assert stage.chat.prompt.text == "two, better"
        call.give(None)
        await stage.until(stage.resting)
        assert NOTICE in stage.text()
        await stage.pilot.press("enter")
        assert (await stage.call("ask")).argument == "two, better"
        assert "second" not in stage.text()

    play(scene, state=state, documents=[a_document()])


def test_the_hint_is_there_on_the_smallest_screen(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await edited(stage)
        await stage.pilot.resize_terminal(40, 10)
        await stage.until(lambda: "Enter replaces" in stage.text() and "Esc keeps" in stage.text())
        assert "two" in stage.text()

    play(scene, state=state)
