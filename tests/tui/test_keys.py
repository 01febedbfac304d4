"""What keys and commands do in the chat."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fakes import Stage, a_document, a_source, an_answer, play
from scenes import documents
from textual.events import AppBlur, AppFocus, MouseScrollDown, MouseScrollUp, Paste

from retrolocal.chats import ChatStore
from retrolocal.errors import UsageError
from retrolocal.tui import slash
from retrolocal.tui.answer import Answer, Question
from retrolocal.tui.engine import DocumentsRead, Turn, Wrote
from retrolocal.tui.source_view import SourceScreen, TextView


async def command(stage: Stage, text: str) -> None:
    stage.chat.prompt.set_text(text)
    await stage.pilot.press("enter")
    await stage.pilot.pause()


def copied(state: Path) -> str:
    path = state / "copied.txt"
    return path.read_text() if path.exists() else ""


def test_several_lines_history_and_undo(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        area = stage.chat.prompt.area
        await stage.pilot.press("a", "ctrl+j", "b", "alt+enter", "c", "shift+enter", "d")
        assert area.text == "a\nb\nc\nd"
        for _ in range(8):
            await stage.pilot.press("ctrl+z")
        assert area.text == ""
        await stage.answered("first\nquestion", "x")
        await stage.answered("second", "y")
        await stage.pilot.press("d", "r", "a", "f", "t", "up")
        assert area.text == "second"
        await stage.pilot.press("up")
        assert area.text == "first\nquestion"
        await stage.pilot.press("up", "up", "up")
        assert area.text == "first\nquestion"
        await stage.pilot.press("ctrl+end", "down", "down", "down")
        assert area.text == "draft"

    play(scene, state=state)


def test_a_long_paste_is_a_chip_and_sent_whole(state: Path) -> None:
    long = "word " * 1000

    async def scene(stage: Stage) -> None:
        await stage.ready()
        area = stage.chat.prompt.area
        stage.app.post_message(Paste("short [/x]"))
        await stage.until(lambda: area.text == "short [/x]")
        stage.app.post_message(Paste(long))
        await stage.until(lambda: "[pasted text 1, 5,000 characters]" in area.text)
        await stage.pilot.press("enter")
        assert (await stage.call("ask")).argument == "short [/x]" + long
        assert "[pasted text 1, 5,000 characters]" in stage.text()

    play(scene, state=state)


def test_ctrl_c_copies_stops_clears_and_leaves_in_this_order(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        stage.chat.prompt.set_text("typed")
        stage.chat.prompt.area.select_all()
        await stage.pilot.press("ctrl+c")
        await stage.until(lambda: copied(state) == "typed")
        stage.chat.prompt.area.move_cursor((0, 0))
        assert stage.engine.stops == 0
        await stage.pilot.press("ctrl+c")
        assert stage.engine.stops == 1
        call.give(an_answer("x"))
        await stage.until(stage.resting)
        await stage.pilot.press("ctrl+c")
        assert stage.chat.prompt.text == ""
        await stage.pilot.press("ctrl+c")
        assert "Ctrl+C again leaves" in stage.status()
        stage.clock.now += 5
        await stage.pilot.press("ctrl+c")
        assert stage.app.left is None
        await stage.pilot.press("ctrl+c")
        assert stage.app.left == 130

    play(scene, state=state)


def test_messages_are_chosen_copied_edited_and_asked_again(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "```py\nx = [1]\n```\nfirst")
        await stage.answered("two", "second")
        await stage.pilot.press("alt+up")
        assert isinstance(stage.chat.focused, Answer)
        await stage.pilot.press("y")
        await stage.until(lambda: copied(state) == "second")
        await stage.pilot.press("r")
        call = await stage.call("ask")
        assert call.argument == "two"
        assert stage.engine.turns[-1] == (Turn("one", "```py\nx = [1]\n```\nfirst"),)
        call.emit(Wrote("better"))
        call.give(an_answer("better"))
        await stage.until(lambda: len(stage.chat.desk.turns) == 2)
        assert "second" not in stage.text()
        await stage.pilot.press("alt+up", "alt+up")
        assert isinstance(stage.chat.focused, Question)
        await stage.pilot.press("e")
        await stage.until(lambda: stage.chat.prompt.text == "two")
        await stage.pilot.press("escape", "alt+up", "alt+up", "alt+up", "c")
        await stage.until(lambda: copied(state) == "x = [1]")

    play(scene, state=state)


def test_only_the_last_turn_is_taken_back_and_not_while_answering(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first")
        await stage.answered("two", "second")
        await stage.pilot.press("alt+up", "alt+up", "alt+up", "r")
        assert "only the last answer" in stage.status()
        await stage.pilot.press("alt+up", "e")
        assert "only the last question" in stage.status()
        stage.chat.focus_prompt()
        call = await stage.ask("three")
        await command(stage, "/edit")
        assert "stop it first (Esc)" in stage.status()
        assert len(stage.chat.desk.turns) == 2
        call.give(an_answer("x"))

    play(scene, state=state)


def test_scrolling_lets_go_and_the_end_follows_again(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        log = stage.chat.log_view
        call = await stage.ask("why")
        for number in range(60):
            call.emit(Wrote(f"line {number}\n\n"))
        await stage.until(lambda: "line 59" in stage.text())
        await stage.pilot.press("pageup")
        await stage.pilot.pause()
        assert "line 59" not in stage.text()
        before = stage.text()
        call.emit(Wrote("more\n\n" * 5))
        await stage.until(lambda: log.virtual_size.height > 130)
        await stage.pilot.pause()
        rows, rows_before = (shown.splitlines()[2:20] for shown in (stage.text(), before))
        assert [row[:68] for row in rows] == [row[:68] for row in rows_before]
        await stage.pilot.press("ctrl+end")
        await stage.pilot.pause()
        assert "more" in stage.text()
        call.emit(Wrote("the very end\n\n"))
        await stage.until(lambda: "the very end" in stage.text())
        log.scroll_up(animate=False)
        log.release_anchor()
        await stage.pilot.pause()
        stage.chat.ask("another")
        await stage.until(lambda: "another" in stage.text())

    play(scene, state=state)


def test_the_wheel_lets_go_and_coming_back_follows(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        call = await stage.ask("why")
        call.emit(Wrote("line\n\n" * 60))
        await stage.until(lambda: stage.chat.log_view.virtual_size.height > 100)
        await stage.pilot.pause()
        log = stage.chat.log_view
        await stage.pilot._post_mouse_events([MouseScrollUp], log)
        await stage.pilot.pause()
        held = log.scroll_offset.y
        call.emit(Wrote("more\n\n" * 10))
        await stage.until(lambda: log.virtual_size.height > 140)
        await stage.pilot.pause()
        assert log.scroll_offset.y == held
        for _ in range(40):
            await stage.pilot._post_mouse_events([MouseScrollDown], log)
        await stage.pilot.pause()
        call.emit(Wrote("the very end\n\n"))
        await stage.until(lambda: "the very end" in stage.text())

    play(scene, state=state)


def test_commands_of_the_conversation(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("one", "first ```x```")
        await stage.answered("//etc", "```\na\n```\n```\nb\n```")
        assert stage.chat.desk.turns[-1].question == "/etc"
        await command(stage, "/copy 2")
        await stage.until(lambda: copied(state) == "first ```x```")
        await command(stage, "/code 1")
        await stage.until(lambda: copied(state) == "a")
        await command(stage, "/code")
        await stage.until(lambda: copied(state) == "b")
        for wrong, why in (
            ("/copy 9", "there are 2 answers"),
            ("/copy x", "give a number"),
            ("/cpoy", "did you mean /copy?"),
            ("/code 7", "has 2 code blocks"),
            ("/source 1", "no document to show"),
            ("/file", "needs PATH"),
            ("/file /nowhere/at/all", "there is no file"),
            ("/new now", "takes nothing after it"),
            ("/theme ansi-drak", "did you mean ansi-dark?"),
            ("/drop", "no document to drop"),
        ):
            await command(stage, wrong)
            assert why in stage.status(), wrong
            assert stage.chat.prompt.text == stage.chat.prompt.area.selected_text == wrong
        await command(stage, "/docs")
        assert "no documents" in stage.text()
        await command(stage, "/stats")
        await command(stage, "/log")
        assert "chat.log" in stage.text()
        await command(stage, "/theme nord")
        assert stage.app.theme == "nord"
        target = state.parent / "out.md"
        await command(stage, f"/export {target}")
        assert "> one" in target.read_text()
        await command(stage, f"/export {target}")
        assert "exists" in stage.status()
        await command(stage, "/retry")
        (await stage.call("ask")).give(an_answer("again"))
        await stage.until(lambda: len(stage.chat.desk.turns) == 2)
        await command(stage, "/new")
        await stage.until(lambda: stage.chat.desk.turns == [] and stage.resting())
        assert "first" not in stage.text()
        assert stage.engine.turns[-1] == ()
        await command(stage, "/edit")
        assert "no question to edit" in stage.status()
        await command(stage, "/quit")
        await stage.until(lambda: stage.app.left == 0)

    play(scene, state=state)


def test_chats_are_kept_reopened_renamed_and_filtered(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("about [Ahab]", "a captain")
        await command(stage, "/rename The captain [x]")
        await command(stage, "/new")
        await stage.until(stage.resting)
        await stage.answered("about Ishmael", "a sailor")
        titles = [chat.title for chat in ChatStore(state / "chats").list()]
        assert titles == ["about Ishmael", "The captain [x]"]
        await stage.pilot.press("f4")
        await stage.until(lambda: "The captain [x]" in stage.text())
        assert "2 of 2 chats" in stage.text()
        await stage.pilot.press("c", "a", "p")
        await stage.until(lambda: "1 of 2 chats" in stage.text())
        await stage.pilot.press("enter")
        await stage.until(lambda: "a captain" in stage.text())
        assert stage.engine.turns[-1] == (Turn("about [Ahab]", "a captain"),)
        assert "a sailor" not in stage.text()
        await stage.until(stage.resting)
        await stage.answered("and then?", "he sailed")
        assert [len(chat.turns) for chat in ChatStore(state / "chats").list()] == [2, 1]
        await stage.pilot.press("f4", "down", "ctrl+x")
        await stage.until(lambda: "again deletes" in stage.text())
        await stage.pilot.press("ctrl+x")
        await stage.until(lambda: "1 of 1 chats" in stage.text())
        await stage.pilot.press("escape")
        await stage.until(lambda: stage.app.screen is stage.chat)
        assert len(ChatStore(state / "chats").list()) == 1

    play(scene, state=state)


def test_a_chat_about_a_lost_file_says_so(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("q", "a")
        await command(stage, "/drop")
        call = await stage.call("documents")
        call.emit(DocumentsRead(()))
        call.give(None)
        await stage.until(stage.resting)
        await command(stage, "/chats")
        await stage.pilot.press("enter")
        await stage.until(lambda: "is not there any more" in stage.status())
        assert stage.chat.desk.turns == [Turn("q", "a")]

    play(scene, state=state, documents=[a_document()])


def test_sources_are_opened_by_digit_key_and_click(state: Path) -> None:
    text = "Intro.\n" * 3000 + "The planted 日本 sentence.\n" + "Outro.\n" * 3000
    book = a_document("book.pdf", text, pages=100)
    start = text.index("The planted")
    sources = (
        a_source(book, 14, 20, 0.3, 1),
        a_source(book, start, start + 24, 0.6, 50),
    )

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("where", "There.", sources=sources)
        assert "read from  1 p.1 ██  2 p.50 ████" in stage.text()
        await stage.pilot.press("alt+up", "2")
        await stage.until(lambda: isinstance(stage.app.screen, SourceScreen))
        await stage.until(lambda: "The planted 日本 sentence." in stage.text())
        assert "p.50" in stage.text()
        assert "read from: 2 of 2" in stage.text()
        await stage.pilot.press("y")
        await stage.until(lambda: copied(state) == text[start : start + 24])
        await stage.pilot.press("n")
        await stage.until(lambda: "read from: 1 of 2" in stage.text())
        assert "planted" not in stage.text()
        await stage.pilot.press("2")
        await stage.until(lambda: "planted" in stage.text())
        for size in ((60, 20), (140, 40), (110, 28)):
            await stage.pilot.resize_terminal(*size)
            await stage.pilot.pause()
            assert "The planted 日本 sentence." in stage.text()
        await stage.pilot.press("slash", *"outro", "enter")
        await stage.until(lambda: "Outro." in stage.text())
        await stage.pilot.press("g", "9", "9", "9", "enter")
        await stage.until(lambda: "there is no page 999" in stage.text())
        await stage.pilot.press("g", "1", "enter")
        await stage.until(lambda: "p.1 " in stage.text())
        await stage.pilot.press("slash", *"nowhere", "enter")
        await stage.until(lambda: "does not occur" in stage.text())
        await stage.pilot.press("escape")
        await stage.until(lambda: stage.app.screen is stage.chat)
        answer = stage.chat.log_view.answers[-1]
        row = next(n for n, line in enumerate(answer.rows(60)) if "read from" in line.plain)
        await stage.pilot.click(Answer, offset=(24, row))
        await stage.until(lambda: isinstance(stage.app.screen, SourceScreen))
        await stage.until(lambda: "planted" in stage.text())
        await stage.pilot.press("f3")
        await stage.until(lambda: stage.app.screen is stage.chat)
        await stage.pilot.press("f3")
        await stage.until(lambda: "read from: 1 of 2" in stage.text())

    play(scene, state=state, documents=[book])


@pytest.mark.parametrize("width", [110, 100, 80, 60])
def test_no_character_lies_under_the_scrollbar(state: Path, width: int) -> None:
    # As long as a row would be without the scrollbar.
    text = "".join(f"{row:03}" + "x" * (width - 8) + "yz\n" for row in range(200))

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("f3")
        await stage.until(lambda: "000xx" in stage.text())
        await stage.pilot.pause()
        rows = [line for line in stage.text().splitlines() if line.startswith("·")]
        shown = "".join(line[3 : width - 1].rstrip() for line in rows)
        assert text.replace("\n", "").startswith(shown)
        assert len(shown) > 10 * width

    play(scene, state=state, size=(width, 28), documents=[a_document("wide.txt", text)])


def test_both_ends_of_a_long_text_are_exact(state: Path) -> None:
    text = "第一 first line\n" + "middle of the text " * 260_000 + "\nlast line 最後"

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("f3")
        await stage.until(lambda: "第一 first line" in stage.text())
        await stage.pilot.press("G")
        await stage.until(lambda: "last line 最後" in stage.text())
        view = stage.app.screen.query_one(TextView)
        await stage.pilot.press("k", "j")
        assert view.at_end
        await stage.pilot.press("q")
        await stage.until(lambda: stage.app.screen is stage.chat)

    play(scene, state=state, documents=[a_document("long.txt", text)])


def test_without_passages_f3_shows_the_documents_one_after_another(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("f3")
        await stage.until(lambda: "moby-dick.pdf" in stage.text() and "p.1" in stage.text())
        assert "read from" not in stage.text()
        await stage.pilot.press("n")
        await stage.until(lambda: "Dear sir" in stage.text())

    play(scene, state=state, documents=documents())


def test_a_long_conversation_is_few_widgets_and_looks_the_same(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        for number in range(25):
            await stage.answered(f"question {number}", f"- answer {number}\n- [/x]")
        log = stage.chat.log_view
        assert len(log.children) < 45
        assert [answer.text for answer in log.answers][3] == "- answer 3\n- [/x]"
        assert len(log.questions) == 25
        height = log.virtual_size.height
        log.scroll_home(animate=False)
        await stage.pilot.pause()
        assert "question 0" in stage.text()
        assert "• answer 1" in stage.text()
        await command(stage, "/copy 25")
        await stage.until(lambda: copied(state).startswith("- answer 0"))
        stage.chat.show_turns(stage.chat.desk.turns)
        await stage.pilot.pause()
        remarks = 25
        assert log.virtual_size.height == height - remarks
        assert "answer 24" in stage.text()
        await stage.pilot.press(*["alt+up"] * 60)
        assert stage.chat.focused is not None

    play(scene, state=state)


def test_completion_of_commands_and_paths(state: Path) -> None:
    folder = state.parent / "books"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "whale [x].txt").write_text("x")
    (folder / ".hidden").write_text("x")

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("slash", "e")
        assert "/edit" in stage.text()
        assert "/export" in stage.text()
        await stage.pilot.press("down", "tab")
        assert stage.chat.prompt.text == "/export "
        stage.chat.prompt.set_text(f"/file {folder}/")
        await stage.pilot.pause()
        assert "deep/" in stage.text()
        assert ".hidden" not in stage.text()
        await stage.pilot.press("tab", "tab")
        assert stage.chat.prompt.text == f"/file {folder}/deep/whale [x].txt"

    play(scene, state=state)


def test_an_at_sign_completes_paths_and_adds_the_file(state: Path) -> None:
    folder = state.parent / "books"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "whale [x].txt").write_text("x")

    async def scene(stage: Stage) -> None:
        await stage.ready()
        stage.chat.prompt.set_text(f"@{folder}/")
        await stage.pilot.pause()
        await stage.pilot.press("tab")
        assert stage.chat.prompt.text == f"@{folder}/deep/"
        await stage.pilot.press("tab")
        assert stage.chat.prompt.text == f"/file {folder}/deep/whale [x].txt"
        await stage.pilot.press("enter")
        assert (await stage.call("documents")).argument == (f"{folder}/deep/whale [x].txt",)

    play(scene, state=state)


def test_a_file_dropped_on_the_terminal_may_become_a_document(state: Path) -> None:
    path = state.parent / "a b.txt"
    path.write_text("x")

    async def scene(stage: Stage) -> None:
        await stage.ready()
        for typed in (str(path), f"'{path}'", str(path).replace(" ", "\\ ") + " "):
            stage.app.post_message(Paste(typed))
            await stage.until(lambda: "Tab makes it a document" in stage.text())
            await stage.pilot.press("tab")
            assert stage.chat.prompt.text == f"/file {path}"
            stage.chat.prompt.set_text("")
            await stage.pilot.pause()
        assert not slash.complete("/nowhere/at/all")
        assert not slash.complete("/etc")
        assert not slash.complete("/etc\x00")

    play(scene, state=state)


def test_help_and_palette_name_every_command(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.resize_terminal(120, 60)
        await stage.pilot.press("f1")
        await stage.until(lambda: "Commands" in stage.text())
        for one in slash.COMMANDS:
            assert f"/{one.name}" in stage.text()
        await stage.pilot.press("escape")
        await stage.until(lambda: stage.app.screen is stage.chat)
        names = [one.title for one in stage.app.get_system_commands(stage.chat)]
        assert {"/copy", "/retry", "/chats", "/quit"} <= set(names)
        assert "/file" not in names
        await stage.pilot.press("ctrl+p", *"/docs", "enter")
        await stage.until(lambda: "no documents" in stage.text())
        await stage.pilot.press("ctrl+l")

    play(scene, state=state)


def test_every_command_has_a_method() -> None:
    from retrolocal.tui.chat_commands import ChatCommands

    assert all(callable(getattr(ChatCommands, command.name)) for command in slash.COMMANDS)


@pytest.mark.parametrize(("text", "name"), [("/copy 2", "copy"), ("/quit  ", "quit")])
def test_a_command_is_told_from_a_question(text: str, name: str) -> None:
    found = slash.parse(text)
    assert found is not None
    assert found[0].name == name
    assert slash.parse("//x") is None
    assert slash.parse("what /copy") is None
    with pytest.raises(UsageError):
        slash.parse("/")


def test_focus_changes_restyle_nothing_and_keep_the_prompt(state: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.ready()
        calls: list[object] = []
        stage.chat.update_node_styles = lambda *a, **k: calls.append(a)  # type: ignore[method-assign]
        stage.app.post_message(AppBlur())
        await stage.pilot.pause()
        stage.app.post_message(AppFocus())
        await stage.pilot.pause()
        assert calls == []
        await stage.pilot.press("x")
        assert stage.chat.prompt.text == "x"

    play(scene, state=state)


KEYS = [
    *"abz /[]*`#日",
    *("enter", "escape", "up", "down", "left", "right", "tab", "shift+tab", "backspace", "delete"),
    *("ctrl+j", "alt+enter", "ctrl+z", "ctrl+y", "ctrl+a", "ctrl+k", "ctrl+u", "ctrl+w", "ctrl+x"),
    *("alt+up", "alt+down", "pageup", "pagedown", "home", "end", "ctrl+end", "ctrl+l", "ctrl+p"),
    *("f1", "f2", "f3", "f4", "f5", "f6", "f7", "ctrl+v", "shift+left", "shift+up", "1", "y", "r"),
]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_thousand_random_keys_leave_the_application_alive(state: Path, seed: int) -> None:
    """Twice a thousand keys, with an engine that answers at random moments."""
    chance = random.Random(seed)

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.answered("q", "a\n\n```\nx\n```", sources=(a_source(book, 5, 90, 0.5, 1),))
        # The palette can be made to leave, which is no failure.
        stage.app.leave = lambda code=0: None  # type: ignore[method-assign]
        waiting = []
        keys: list[str] = []
        for number in range(1000):
            key = chance.choice(KEYS)
            keys.append(key)
            stage.app.simulate_key(key)
            if number % 5 == 0:
                await stage.pilot.pause()
            while not stage.engine.calls.empty():
                waiting.append(stage.engine.calls.get())
            if waiting and chance.random() < 0.2:
                call = waiting.pop(0)
                call.emit(Wrote("- [x] *some"))
                call.give(an_answer("- [x] *some") if call.name == "ask" else None)
            if number % 97 == 0:
                await stage.pilot.resize_terminal(chance.choice((30, 60, 110)), 28)
        await stage.pilot.pause()
        assert stage.app.is_running, keys
        assert stage.app.left is None

    book = a_document()
    play(scene, state=state, documents=[book])
