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


def test_a_key_of_the_other_kind_says_which_one_works(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        await stage.pilot.press("alt+up", "e")
        await stage.until(lambda: "e works on a question (Alt+Up)" in stage.status())
        await stage.pilot.press("alt+up", "r")
        await stage.until(lambda: "r works on an answer (Alt+Down)" in stage.status())
        assert stage.chat.desk.turns == [Turn("one", "first")]
        assert stage.engine.calls.empty()

    play(scene, state=state)


def test_what_is_typed_replaces_a_command_that_was_refused(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.type("/drop")
        assert "no document to drop" in stage.status()
        await stage.type("/docs")
        await stage.until(lambda: "no documents" in stage.text())
        await stage.type("/drop")
        await stage.pilot.press("ctrl+c", "ctrl+c")
        assert stage.chat.prompt.text == ""

    play(scene, state=state)


def test_ctrl_d_at_the_end_of_a_text_says_how_to_leave(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("a", "b", "ctrl+d")
        assert "Ctrl+C clears it, Ctrl+Q leaves" in stage.status()
        await stage.pilot.press("home", "ctrl+d")
        assert stage.chat.prompt.text == "b"
        await stage.pilot.press("ctrl+d", "ctrl+d")
        await stage.until(lambda: stage.app.left == 0)

    play(scene, state=state)
