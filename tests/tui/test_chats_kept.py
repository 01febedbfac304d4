"""What becomes of a chat when it is left for another one, or for good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeEngine, Stage, a_document, a_source, an_answer, play

from retrolocal.chats import ChatStore, ChatTurn
from retrolocal.errors import Interrupted, SpaceError
from retrolocal.tui.engine import (
    Advanced,
    Began,
    ChatSettings,
    DocumentsRead,
    Turn,
    Wrote,
)
from retrolocal.tui.launch import keeping


async def command(stage: Stage, text: str) -> None:
    stage.chat.prompt.set_text(text)
    await stage.pilot.press("enter")
    await stage.pilot.pause()


def store(state: Path) -> ChatStore:
    return ChatStore(state / "chats")


def test_leaving_shows_that_the_chat_is_saved_and_ends_when_it_is(state: Path) -> None:
    engine = FakeEngine()

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because")
        engine.keeping.clear()
        await stage.pilot.press("ctrl+q")
        stage.clock.now += 2
        await stage.until(lambda: "saving the chat, 2 s" in stage.status())
        assert "Esc quit now" in stage.status()
        assert not stage.app._exit
        engine.keeping.set()
        await stage.until(lambda: stage.app._exit)

    app = play(scene, state=state, engine=engine)
    [chat] = store(state).list()
    assert engine.kept == [store(state).cache_of(chat.id)]
    assert app.return_code == 0


@pytest.mark.parametrize("renamed", [False, True])
def test_a_chat_is_named_by_its_first_question_also_when_that_is_edited(
    state: Path, renamed: bool
) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because")
        if renamed:
            await command(stage, "/rename mine")
        await command(stage, "/edit")
        await stage.until(lambda: stage.chat.prompt.text == "why")
        (await stage.ask("how")).give(an_answer("so"))
        await stage.until(lambda: stage.chat.desk.turns == [Turn("how", "so")])
        await stage.answered("when", "now")

    play(scene, state=state)
    assert [chat.title for chat in store(state).list()] == ["mine" if renamed else "how"]


@pytest.mark.parametrize("key", ["escape", "ctrl+c", "ctrl+q", "ctrl+d"])
def test_whoever_does_not_want_to_wait_leaves_at_once(state: Path, key: str) -> None:
    engine = FakeEngine()

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because")
        engine.keeping.clear()
        await stage.pilot.press("ctrl+q")
        await stage.until(lambda: "saving" in stage.status())
        await stage.pilot.press(key)
        await stage.until(lambda: stage.app._exit)
        assert engine.kept == []

    assert play(scene, state=state, engine=engine).return_code == 0
    assert [chat.title for chat in store(state).list()] == ["why"]


def test_leaving_in_the_middle_of_an_answer_keeps_its_part(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Wrote("Because of"))
        await stage.until(lambda: stage.chat.desk.activity.phase == "answering")
        await stage.pilot.press("ctrl+q")
        await stage.until(lambda: "Leave?" in stage.text())
        await stage.pilot.press("y")
        await stage.until(call.stopped.is_set)
        assert "stopping" in stage.status()
        assert not stage.app._exit
        call.give(an_answer("Because of the", stop_reason="interrupted"))
        await stage.until(lambda: stage.app._exit)
        assert len(stage.engine.kept) == 1

    play(scene, state=state)
    [chat] = store(state).list()
    assert chat.turns[0].answer == "Because of the"


def test_a_signal_waits_for_nothing(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because")
        call = await stage.ask("and")
        call.emit(Wrote("Half"))
        await stage.until(lambda: stage.chat.desk.activity.phase == "answering")
        stage.app.leave(143, now=True)
        await stage.until(lambda: stage.app._exit)
        assert stage.engine.kept == []

    assert play(scene, state=state).return_code == 143
    assert [turn.answer for turn in store(state).list()[0].turns] == ["because", "Half"]


def test_a_question_is_on_the_disk_before_its_answer(state: Path) -> None:
    async def killed(stage: Stage) -> None:
        await stage.ready()
        await stage.ask("why")
        [chat] = store(state).list()
        assert (chat.title, chat.turns) == ("why", (ChatTurn("why", "", "interrupted"),))

    async def again(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("f4", "enter")
        await stage.until(lambda: stage.chat.prompt.text == "why")
        await stage.until(stage.resting)
        assert stage.chat.desk.turns == []
        await stage.pilot.press("enter")
        call = await stage.call("ask")
        assert call.argument == "why"
        call.give(an_answer("because"))
        await stage.until(stage.resting)

    play(killed, state=state)
    play(again, state=state)
    [chat] = store(state).list()
    assert chat.turns == (ChatTurn("why", "because"),)


@pytest.mark.parametrize("before", [0, 1])
def test_a_question_that_is_stopped_is_in_no_chat(state: Path, before: int) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        for _ in range(before):
            await stage.answered("one", "first")
        call = await stage.ask("why")
        assert [len(chat.turns) for chat in store(state).list()] == [before + 1]
        await stage.pilot.press("escape")
        await stage.until(call.stopped.is_set)
        call.give(Interrupted("stopped"))
        await stage.until(stage.resting)
        assert [len(chat.turns) for chat in store(state).list()] == [1] * before

    play(scene, state=state)


def test_what_could_not_be_kept_is_said_when_the_screen_is_gone(state: Path) -> None:
    engine = FakeEngine()
    engine.keep_error = SpaceError("the disk [/] is full")

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because")
        await stage.pilot.press("ctrl+q")
        await stage.until(lambda: stage.app._exit)

    app = play(scene, state=state, engine=engine)
    assert app.last_words == ["the disk [/] is full"]
    assert app.return_code == 0


def test_another_chat_is_opened_with_what_was_kept_of_it(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        await command(stage, "/new")
        await stage.until(stage.resting)
        [first] = [store(state).cache_of(chat.id) for chat in store(state).list()]
        assert stage.engine.kept == [first]
        assert stage.engine.reopened == []
        await command(stage, "/new")
        await stage.until(stage.resting)
        assert stage.engine.kept == [first]
        await stage.answered("two", "second")
        await stage.pilot.press("f4", "down", "enter")
        await stage.until(lambda: stage.engine.reopened)
        assert stage.engine.reopened == [first]
        assert len(stage.engine.kept) == 2
        assert stage.engine.kept[1] != first
        assert stage.engine.turns[-1] == (Turn("one", "first"),)
        await stage.until(stage.resting)
        assert "Only the text" not in stage.text()
        updated = [chat.updated for chat in store(state).list()]
        await stage.pilot.press("ctrl+q")
        await stage.until(lambda: stage.app._exit)
        # Reading in a chat is no change of it.
        assert len(stage.engine.kept) == 2
        assert [chat.updated for chat in store(state).list()] == updated

    play(scene, state=state)


def test_a_file_that_was_added_is_kept_though_nothing_was_asked_of_it(state: Path) -> None:
    path = state.parent / "more.txt"
    path.write_text("more")
    added = replace(a_document(), path=str(path))

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because")
        await command(stage, f"/file {path}")
        call = await stage.call("documents")
        call.emit(DocumentsRead((added,)))
        call.give(None)
        await stage.until(lambda: stage.chat.desk.documents)
        await stage.pilot.press("ctrl+q")
        await stage.until(lambda: stage.app._exit or "Leave?" in stage.text())
        await stage.pilot.press("y")
        await stage.until(lambda: stage.app._exit)

    play(scene, state=state)
    [chat] = store(state).list()
    assert store(state).load(chat.id).documents == (str(path),)


def test_a_reopened_answer_says_how_it_ended_and_what_it_was_read_from(state: Path) -> None:
    book = a_document()
    source = a_source(book, 0, 16, 0.4, None)

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first", sources=(source,), stop_reason="interrupted")
        before = [chat.updated for chat in store(state).list()]
        await command(stage, "/new")
        await stage.until(stage.resting)
        assert "read from" not in stage.text()
        await stage.pilot.press("f4", "enter")
        await stage.until(lambda: "first" in stage.text())
        assert "read from  1 moby-dick.txt" in stage.text()
        assert "\n   stopped" in stage.text()
        await stage.until(stage.resting)
        await stage.pilot.press("alt+up", "1")
        await stage.until(lambda: "read from: 1 of 1" in stage.text())
        await stage.pilot.press("escape")
        await command(stage, "/new")
        await stage.until(stage.resting)
        assert [chat.updated for chat in store(state).list()] == before

    play(scene, state=state, documents=[book])


def test_leaving_in_the_middle_of_opening_mixes_no_chats(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        await command(stage, "/new")
        await stage.until(stage.resting)
        await stage.answered("two", "second")
        stage.engine.keeping.clear()
        await stage.pilot.press("f4", "down", "enter")
        await stage.until(lambda: "saving the chat" in stage.status())
        assert "Esc quit now" not in stage.status()
        await stage.pilot.press("escape", "escape")
        stage.app.leave(143, now=True)
        await stage.until(lambda: stage.app._exit)

    play(scene, state=state)
    found = {chat.title: chat.turns[0].answer for chat in store(state).list()}
    assert found == {"one": "first", "two": "second"}


def test_a_chat_of_which_only_the_text_was_kept_says_so(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        await command(stage, "/new")
        await stage.until(stage.resting)
        stage.engine.keeps = False
        await stage.pilot.press("f4", "enter")
        await stage.until(lambda: "Only the text of this chat was kept" in stage.text())
        await stage.until(stage.resting)
        await stage.answered("and then", "more")
        assert stage.chat.desk.turns[0] == Turn("one", "first")

    play(scene, state=state)


def test_a_chat_about_other_documents_is_taken_up_when_they_are_read(state: Path) -> None:
    book = a_document("book.txt")
    path = state.parent / "book.txt"
    path.write_text(book.text)

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        [chat] = store(state).list()
        store(state).save(
            type(chat)(
                id="other",
                title="other",
                created=chat.created,
                updated=chat.updated,
                model=chat.model,
                documents=(str(path),),
                turns=chat.turns,
            )
        )
        await stage.pilot.press("f4", "enter")
        call = await stage.call("documents")
        assert call.argument == (str(path),)
        assert stage.engine.kept == [store(state).cache_of(chat.id)]
        call.emit(DocumentsRead((book,)))
        assert stage.engine.reopened == []
        call.give(None)
        await stage.until(stage.resting)
        assert stage.engine.reopened == [store(state).cache_of("other")]

    play(scene, state=state)


def test_deleting_takes_the_cache_with_it_and_the_open_chat_does_not_come_back(
    state: Path,
) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        [chat] = store(state).list()
        cache = store(state).cache_of(chat.id)
        cache.write_bytes(b"x")
        cache.with_name(f"{cache.name}.new").write_bytes(b"x")
        await stage.pilot.press("f4", "ctrl+x", "ctrl+x")
        await stage.until(lambda: "0 of 0 chats" in stage.text())
        assert list((state / "chats").iterdir()) == []
        await stage.pilot.press("escape")
        await stage.until(lambda: stage.app.screen is stage.chat)
        await stage.pilot.press("ctrl+q")
        await stage.until(lambda: stage.app._exit)

    play(scene, state=state)
    assert store(state).list() == []


def test_what_was_typed_is_there_in_the_next_run(state: Path) -> None:
    async def first(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why [x]\nand how", "because")

    async def second(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("up")
        assert stage.chat.prompt.text == "why [x]\nand how"

    play(first, state=state)
    play(second, state=state)


def test_a_file_is_added_to_the_chat_and_not_to_its_corpus(state: Path) -> None:
    path = state.parent / "more.txt"
    path.write_text("more")

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await command(stage, f"/file {path}")
        (await stage.call("documents")).give(None)
        text = " ".join(stage.text().split())
        assert "more.txt is part of this chat only; the corpus notes stays as it is" in text

    settings = ChatSettings(model="some/model", corpus="notes")
    play(scene, state=state, settings=settings)


def test_compiling_for_the_first_answer_is_said(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready(notes=("The first answer compiles",))
        assert "The first answer compiles" in stage.text()
        call = await stage.ask("why")
        call.emit(Advanced("prefilling", 4, 4), Began("compiling"))
        stage.clock.now += 12
        await stage.until(lambda: "compiling for this processor, once, 12 s" in stage.status())
        call.emit(Wrote("x"))
        await stage.until(lambda: "answering" in stage.status())
        call.give(an_answer("x"))
        await stage.until(stage.resting)

    play(scene, state=state)


@pytest.mark.parametrize("broken", ["folder", "log"])
def test_a_state_folder_that_cannot_be_made_keeps_nothing_and_says_so(
    broken: str, state: Path
) -> None:
    """Without a folder there are no chats, with something else in the log's place only no log."""
    if broken == "folder":
        state.write_text("a file")
    else:
        (state / "chat.log").mkdir(parents=True)
    engine = FakeEngine()
    settings = keeping(ChatSettings(model="some/model"), state)
    assert (settings.keeps_chats, settings.keeps_log) == (broken == "log", False)

    async def scene(stage: Stage) -> None:
        await stage.ready()
        assert f"kept in {state}"[:40] in stage.text()
        await stage.answered("why", "because")
        assert "could not be saved" not in stage.text()
        await command(stage, "/rename other")
        assert ("chats cannot be kept here" in stage.text()) == (broken == "folder")
        await command(stage, "/log")
        assert "there is no log" in stage.text()
        await stage.pilot.press("ctrl+u")
        await command(stage, "/quit")
        await stage.until(lambda: stage.app._exit)

    app = play(scene, state=state, settings=settings, engine=engine, size=(200, 40))
    assert app.return_code == 0
    assert app.last_words == []
    assert len(engine.kept) == (broken == "log")


def test_a_folder_that_can_be_made_is_not_spoken_of(state: Path) -> None:
    settings = ChatSettings(model="some/model", notes=("a note",))
    assert keeping(settings, state) == settings
