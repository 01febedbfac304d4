"""A file that cannot be read when the chat starts: it is dropped, and the rest goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Call, FakeEngine, Stage, a_document, an_opening, play

from retrolocal.errors import DocumentError, ModelError
from retrolocal.tui.cards import Card
from retrolocal.tui.engine import Began, ChatSettings, DocumentsRead

GOOD = a_document("good.md")
BAD = "/books/empty.txt"
SETTINGS = ChatSettings(model="some/model", documents=(GOOD.path, BAD))


async def failed(stage: Stage) -> None:
    """The model is not opened: its second file has no text."""
    call = await stage.call("open")
    assert stage.engine.files == (GOOD.path, BAD)
    call.emit(Began("reading", GOOD.path), Began("reading", BAD), DocumentsRead((GOOD,)))
    call.give(DocumentError("empty.txt has no text; give another file"))
    await stage.until(lambda: isinstance(stage.chat.focused, Card))


async def opened(stage: Stage, *names: str) -> None:
    """The model is opened again, with these documents."""
    call: Call = await stage.call("open")
    assert stage.engine.files == tuple(f"/books/{name}" for name in names)
    documents = tuple(map(a_document, names))
    call.emit(DocumentsRead(documents))
    call.give(an_opening())
    if documents:
        (await stage.call("read")).give(None)
    await stage.until(stage.resting)
    assert not list(stage.chat.query(Card))
    assert [one.name for one in stage.chat.desk.documents] == list(names)


async def command(stage: Stage, text: str) -> None:
    stage.chat.focus_prompt()
    stage.chat.prompt.set_text(text)
    await stage.pilot.press("enter")
    await stage.pilot.pause()


def test_the_card_has_a_key_that_goes_on_without_the_file(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await failed(stage)
        assert "go on without /books/empty.txt" in stage.text()
        await stage.pilot.press("d")
        await opened(stage, "good.md")
        assert stage.chat.focused is stage.chat.prompt.area
        await stage.answered("one", "first")

    play(scene, state=state, settings=SETTINGS)


@pytest.mark.parametrize("closed", [False, True])
def test_the_file_can_be_dropped_by_its_name(state: Path, closed: bool) -> None:
    async def scene(stage: Stage) -> None:
        await failed(stage)
        if closed:
            await stage.pilot.press("escape")
        await command(stage, "/docs")
        assert "good.md  " in stage.text()
        assert "empty.txt  cannot be read" in stage.text()
        await command(stage, "/drop emtpy.txt")
        assert "did you mean empty.txt?" in stage.status()
        stage.chat.prompt.set_text("")
        if not closed:
            stage.chat.query(Card).last().focus()
        await stage.type("/drop empty.txt")
        await opened(stage, "good.md")

    play(scene, state=state, settings=SETTINGS)


def test_every_file_can_be_dropped_and_others_added(state: Path) -> None:
    path = state.parent / "other.txt"
    path.write_text("x")

    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(Began("reading", BAD), DocumentsRead(()))
        call.give(DocumentError("there is no file empty.txt"))
        await stage.until(lambda: isinstance(stage.chat.focused, Card))
        await command(stage, "/file " + str(path))
        again = await stage.call("open")
        assert stage.engine.files == (BAD, str(path))
        await command(stage, "/drop empty.txt")
        assert "wait until it is" in stage.status()
        again.emit(Began("reading", BAD), DocumentsRead(()))
        again.give(DocumentError("there is no file empty.txt"))
        await stage.until(lambda: len(stage.chat.query(Card)) == 1)
        stage.chat.prompt.set_text("")
        await command(stage, "/docs")
        assert "other.txt  not read yet" in stage.text()
        await command(stage, "/drop")
        third = await stage.call("open")
        assert stage.engine.files == (BAD,)
        third.emit(Began("reading", BAD))
        third.give(DocumentError("there is no file empty.txt"))
        await stage.until(lambda: stage.chat.desk.activity.phase == "failed")
        await command(stage, "/drop")
        await opened(stage)

    settings = ChatSettings(model="some/model", documents=(BAD,))
    play(scene, state=state, settings=settings, engine=FakeEngine())


def test_a_model_that_cannot_be_opened_blames_no_file(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(Began("reading", GOOD.path), DocumentsRead((GOOD,)))
        call.give(ModelError("no model fits"))
        await stage.until(lambda: isinstance(stage.chat.focused, Card))
        assert "go on without" not in stage.text()
        await stage.pilot.press("r")
        await stage.call("open")
        assert stage.engine.files == (GOOD.path, BAD)

    play(scene, state=state, settings=SETTINGS)
