"""Every state of the chat: what it says, what Enter and Esc do, what follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeEngine, Stage, a_document, an_answer, an_opening, play
from scenes import documents

from retrolocal import errors
from retrolocal.errors import DocumentError, Interrupted, MemoryLimitError
from retrolocal.tui.answer import Answer
from retrolocal.tui.cards import Card, text_of, title_of
from retrolocal.tui.engine import (
    Advanced,
    Began,
    ChatSettings,
    DocumentsRead,
    Download,
    NeedsDownload,
    Remarked,
    Turn,
    Wrote,
)


def test_a_question_typed_while_loading_is_queued_and_sent_once(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(Began("loading", "m"), Advanced("loading", 1, 4))
        await stage.until(lambda: "loading the weights 25%" in stage.status())
        await stage.type("one")
        await stage.type("two")
        assert "2 queued" in stage.status()
        assert stage.text().count("queued") >= 2
        call.give(an_opening())
        first = await stage.call("ask")
        assert first.argument == "one"
        await stage.until(lambda: "1 queued" in stage.status())
        first.give(an_answer("1"))
        second = await stage.call("ask")
        assert second.argument == "two"
        second.give(an_answer("2"))
        await stage.until(stage.resting)
        assert stage.chat.desk.turns == [Turn("one", "1"), Turn("two", "2")]
        assert stage.engine.calls.empty()
        assert "queued" not in stage.text()

    play(scene, state=state)


def test_a_remark_stays_in_the_conversation(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("one")
        call.emit(Wrote("1"), Remarked("not kept in the library: the disk is full"))
        await stage.until(lambda: "the disk is full" in stage.text())
        call.give(an_answer("1"))
        await stage.until(stage.resting)
        assert "not kept in the library" in stage.text()

    play(scene, state=state)


def test_esc_does_not_end_loading_or_the_application(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(Began("loading", "m"))
        await stage.until(lambda: "loading" in stage.status())
        await stage.pilot.press("escape", "escape")
        assert stage.engine.stops == 0
        call.give(an_opening())
        await stage.until(stage.resting)
        await stage.pilot.press("escape")
        assert "ready" in stage.status()

    play(scene, state=state)


def test_prefill_is_paused_and_goes_on_with_enter(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(DocumentsRead(stage.engine.documents))
        call.give(an_opening())
        read = await stage.call("read")
        read.emit(Advanced("prefilling", 16384, 65536))
        await stage.until(lambda: "prefill 25% · 16,384 / 65,536 tokens" in stage.status())
        await stage.pilot.press("escape")
        await stage.until(read.stopped.is_set)
        assert "stopping" in stage.status()
        read.give(Interrupted("stopped"))
        await stage.until(lambda: "paused at 25%, what was read is kept" in stage.status())
        await stage.pilot.press("enter")
        again = await stage.call("read")
        again.emit(Advanced("prefilling", 49152, 49152))
        again.give(None)
        await stage.until(stage.resting)

    play(scene, state=state, documents=[a_document()])


def test_a_question_while_paused_reads_on_and_is_answered(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        call = await stage.call("open")
        call.emit(DocumentsRead(stage.engine.documents))
        call.give(an_opening())
        read = await stage.call("read")
        await stage.pilot.press("escape")
        read.give(Interrupted("stopped"))
        await stage.until(lambda: "paused" in stage.status())
        await stage.type("why")
        (await stage.call("read")).give(None)
        assert (await stage.call("ask")).argument == "why"

    play(scene, state=state, documents=[a_document()])


THOUGHT = "<think>\nWhales *are*\nfish?\n</think>\n\nThey are not."


def test_thinking_is_dimmed_and_no_part_of_what_is_copied(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        for piece in (THOUGHT[:4], THOUGHT[4:30], THOUGHT[30:40], THOUGHT[40:]):
            call.emit(Wrote(piece))
        call.give(an_answer(THOUGHT))
        await stage.until(stage.resting)
        await stage.until(lambda: "They are not." in stage.text())
        assert "fish?" in stage.text()
        assert "think>" not in stage.text()
        (answer,) = stage.chat.log_view.answers
        assert answer.text == "They are not."
        rows = answer.rows(60)
        plain = [row.plain for row in rows]
        thought = next(row for row in rows if "fish?" in row.plain)
        assert any("dim" in str(span.style) for span in thought.spans)
        answered = next(row for row in rows if "They are not." in row.plain)
        assert not any("dim" in str(span.style) for span in answered.spans)
        assert [row.plain for row in Answer(THOUGHT).rows(60)][:4] == plain[:4]

    play(scene, state=state)


def test_thinking_can_be_hidden(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Wrote(THOUGHT[:20]))
        await stage.until(lambda: "thinking …" in stage.text())
        call.emit(Wrote(THOUGHT[20:]))
        call.give(an_answer(THOUGHT))
        await stage.until(stage.resting)
        await stage.until(lambda: "They are not." in stage.text())
        assert "fish" not in stage.text()

    settings = ChatSettings(model="org/model", hides_thinking=True)
    play(scene, state=state, settings=settings)


def test_stopping_keeps_the_part_of_the_answer(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        assert "waiting 0 s" in stage.status()
        call.emit(Wrote("Because of"))
        await stage.until(lambda: "Because of" in stage.text())
        assert "answering" in stage.status()
        await stage.pilot.press("escape")
        await stage.until(call.stopped.is_set)
        assert "stopping" in stage.status()
        await stage.pilot.press("escape")
        assert stage.engine.stops == 1
        call.give(an_answer("Because of", stop_reason="interrupted"))
        await stage.until(stage.resting)
        assert "Because of" in stage.text()
        assert "stopped · 212 tokens" in stage.text()
        assert stage.chat.desk.turns == [Turn("why", "Because of")]
        await stage.answered("next", "fine")

    play(scene, state=state)


def test_a_question_stopped_before_its_answer_is_not_part_of_the_chat(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Advanced("prefilling", 10, 20))
        await stage.until(lambda: "reading the question 50%" in stage.status())
        await stage.pilot.press("escape")
        call.give(Interrupted("stopped while reading the prompt"))
        await stage.until(stage.resting)
        assert "not answered" in stage.text()
        assert stage.chat.desk.turns == []
        assert not list(stage.chat.query(Card))

    play(scene, state=state)


def test_enter_while_answering_queues(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("one")
        await stage.type("two")
        assert "1 queued" in stage.status()
        call.emit(Wrote("A"))
        call.give(an_answer("A"))
        following = await stage.call("ask")
        assert following.argument == "two"
        order = [type(child).__name__ for child in stage.chat.log_view.children]
        assert order[-4:] == ["Question", "Answer", "Question", "Answer"]

    play(scene, state=state)


def test_a_download_is_asked_for_and_started(state: Path) -> None:
    download = Download(
        model="org/m", total_bytes=15 * 10**9, free_bytes=20 * 10**9, folder=Path("/cache")
    )

    async def scene(stage: Stage) -> None:
        first = await stage.call("open")
        assert first.argument is False
        first.give(NeedsDownload(download))
        await stage.until(lambda: "15.0 GB" in stage.text())
        assert "/cache" in stage.text()
        await stage.pilot.press("y")
        second = await stage.call("open")
        assert second.argument is True
        second.emit(Began("downloading", "org/m"), Advanced("downloading", 3 * 10**9, 15 * 10**9))
        await stage.until(lambda: "downloading 20% · 3.0 GB / 15.0 GB" in stage.status())
        await stage.pilot.press("escape")
        await stage.until(second.stopped.is_set)
        second.give(Interrupted("stopped"))
        await stage.until(lambda: "paused" in stage.status())
        await stage.pilot.press("enter")
        third = await stage.call("open")
        assert third.argument is True
        third.give(an_opening())
        await stage.until(stage.resting)

    play(scene, state=state)


def test_a_download_that_does_not_fit_cannot_be_chosen(state: Path) -> None:
    download = Download(model="m", total_bytes=30 * 10**9, free_bytes=20 * 10**9, folder=Path("/c"))

    async def scene(stage: Stage) -> None:
        (await stage.call("open")).give(NeedsDownload(download))
        await stage.until(lambda: "10.0 GB more than is free" in stage.text())
        await stage.pilot.press("y")
        assert stage.chat.prompt.text == "y"
        assert stage.engine.calls.empty()

    play(scene, state=state)


def test_not_downloading_leaves(state: Path) -> None:
    download = Download(model="m", total_bytes=1, free_bytes=20, folder=Path("/c"))

    async def scene(stage: Stage) -> None:
        (await stage.call("open")).give(NeedsDownload(download))
        await stage.until(lambda: stage.chat.desk.activity.phase == "consent")
        await stage.pilot.press("n")

    assert play(scene, state=state).left == 0


def test_an_error_is_a_card_whose_keys_work(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        (await stage.call("open")).give(MemoryLimitError("needs 9 GiB [/b] and 2 are free: close"))
        await stage.until(lambda: "Not enough memory" in stage.text())
        assert "needs 9 GiB [/b] and 2 are free: close" in stage.text()
        assert "failed" in stage.status()
        await stage.pilot.press("l")
        await stage.until(lambda: "chat.log" in stage.text())
        await stage.pilot.press("c")
        await stage.until(lambda: (state / "copied.txt").exists())
        assert "needs 9 GiB [/b]" in (state / "copied.txt").read_text()
        await stage.pilot.press("r")
        (await stage.call("open")).give(an_opening())
        await stage.until(stage.resting)
        assert "Not enough memory" not in stage.text()

    play(scene, state=state)


def test_other_letters_on_a_card_go_to_the_prompt(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        (await stage.call("open")).give(MemoryLimitError("no"))
        await stage.until(lambda: isinstance(stage.chat.focused, Card))
        await stage.pilot.press("W", "h", "y")
        assert stage.chat.prompt.text == "Why"
        await stage.pilot.press("alt+up", "escape")
        assert not list(stage.chat.query(Card))
        assert stage.chat.focused is stage.chat.prompt.area

    play(scene, state=state)


def test_an_answer_that_fails_leaves_the_rest_usable(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Wrote("half"))
        call.give(RuntimeError("CUDA [bold] error"))
        await stage.until(lambda: "An error inside the program" in stage.text())
        assert "RuntimeError: CUDA [bold] error" in " ".join(stage.text().split())
        assert "not answered" in stage.text()
        stage.chat.focus_prompt()
        await stage.answered("again", "fine")

    play(scene, state=state)


def everything(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(one for child in base.__subclasses__() for one in everything(child))]


@pytest.mark.parametrize("kind", everything(errors.RetrolocalError))
def test_every_error_has_a_card(kind: type[BaseException]) -> None:
    if kind is errors.RetrolocalError:
        return
    error = kind.__new__(kind, "what")
    error.args = ("what happened",)
    assert title_of(error) != "An error inside the program"
    assert text_of(error) == "what happened"


def test_a_document_that_cannot_be_added_changes_nothing(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        path = state.parent / "a.pdf"
        path.write_text("x")
        stage.chat.prompt.set_text(f"/file {path}")
        await stage.pilot.press("enter")
        call = await stage.call("documents")
        assert call.argument == (str(path),)
        call.give(DocumentError("a.pdf is encrypted; give --password"))
        await stage.until(lambda: "The document cannot be read" in stage.text())
        await stage.until(stage.resting)

    play(scene, state=state)


@pytest.mark.parametrize(
    ("how", "phase", "asks"),
    [
        ("ctrl+q", "ready", False),
        ("ctrl+d", "ready", False),
        ("ctrl+q", "answering", True),
        ("ctrl+d", "answering", True),
        ("ctrl+q", "starting", True),
    ],
)
def test_leaving_asks_once_while_something_is_done(
    state: Path, how: str, phase: str, asks: bool
) -> None:
    async def scene(stage: Stage) -> None:
        if phase != "starting":
            await stage.ready()
        if phase == "answering":
            call = await stage.ask("why")
            call.emit(Wrote("Part of it"))
            await stage.until(lambda: stage.chat.desk.activity.phase == phase)
        await stage.pilot.press(how)
        if asks:
            await stage.until(lambda: "Leave?" in stage.text())
            await stage.pilot.press("n")
            await stage.until(lambda: stage.app.screen is stage.chat)
            assert stage.app.left is None
            await stage.pilot.press(how)
            await stage.until(lambda: "Leave?" in stage.text())
            await stage.pilot.press("y")
        if phase == "answering":
            call.give(an_answer("Part of it all", stop_reason="interrupted"))
        await stage.until(lambda: stage.app._exit)

    app = play(scene, state=state)
    assert app.left == 0
    kept = list((state / "chats").glob("*.json")) if (state / "chats").exists() else []
    assert len(kept) == (phase == "answering")
    if kept:
        assert "Part of it" in kept[0].read_text()


def test_the_thread_is_told_to_end_when_the_application_leaves(state: Path) -> None:
    engine = FakeEngine()

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.ask("why")
        stage.app.leave(143, now=True)

    app = play(scene, state=state, engine=engine)
    assert app.left == app.return_code == 143
    assert engine.stops == 1
    assert engine.closed.wait(60)


def test_notes_and_names_are_never_markup(state: Path) -> None:
    settings = ChatSettings(model="[/m]", notes=("a [note] of $text [/x]",))
    document = a_document("[b]ook [/].txt")

    async def scene(stage: Stage) -> None:
        await stage.ready(model="[red]model[/oops]")
        text = stage.text()
        for shown in ("a [note] of $text [/x]", "[b]ook [/].txt", "[red]model[/oops]"):
            assert shown in text
        await stage.answered(
            "[/q] [b + 3 [@click=x]", "*a* [/a] [b + 3 \x1b[31m [@click=app.quit]q[/]"
        )
        assert "[/q] [b + 3 [@click=x]" in stage.text()
        assert "a [/a] [b + 3 ␛[31m [@click=app.quit]q[/]" in stage.text()

    play(scene, state=state, documents=[document], settings=settings)


def test_the_screen_follows_the_size(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("why", "because\n\n" * 30)
        for size, panel, keys in (((110, 28), True, True), ((80, 24), False, True)):
            await stage.pilot.resize_terminal(*size)
            await stage.pilot.pause()
            assert ("Documents" in stage.text()) == panel
            assert ("F1 help" in stage.text()) == keys
        await stage.pilot.press("f2")
        assert "Documents" in stage.text()
        await stage.pilot.press("escape")
        assert "Documents" not in stage.text()
        await stage.pilot.resize_terminal(60, 16)
        await stage.pilot.pause()
        assert "F1 help" not in stage.text()
        assert "ready" in stage.text()
        await stage.pilot.resize_terminal(39, 30)
        await stage.pilot.pause()
        assert "at least 40 x 10" in stage.text()
        await stage.pilot.resize_terminal(110, 28)
        await stage.pilot.pause()
        assert "because" in stage.text()
        await stage.pilot.press("f2")
        assert "Documents" not in stage.text()

    play(scene, state=state, documents=documents())
