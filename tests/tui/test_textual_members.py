"""Members of Textual that are overridden without being promised.

Each test fails when a release of Textual no longer calls or has what is overridden here; the
override is then wrong, or no longer needed.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from pathlib import Path

import pytest
from fakes import Stage, play
from textual import timer
from textual.app import App, ComposeResult
from textual.widgets import TextArea

from retrolocal.tui.app import ChatApp
from retrolocal.tui.prompt_bar import PromptInput


def test_focus_of_the_terminal_still_goes_through_the_watcher_that_is_overridden() -> None:
    assert "_watch_app_focus" in ChatApp.__dict__
    watcher = inspect.getsource(App._watch_app_focus)
    assert "update_node_styles" in watcher, "Textual no longer styles everything: drop the override"
    assert list(inspect.signature(App._watch_app_focus).parameters) == ["self", "focus"]


def test_the_cursor_of_a_text_area_still_goes_through_the_method_that_is_overridden(
    state: Path,
) -> None:
    assert "_recompute_cursor_offset" in PromptInput.__dict__
    assert "_recompute_cursor_offset" in inspect.getsource(TextArea.scroll_cursor_visible)

    class Plain(App[None]):
        def compose(self) -> ComposeResult:
            area = TextArea()
            area.styles.height = 4
            yield area

    async def undo() -> str:
        app = Plain()
        try:
            async with app.run_test() as pilot:
                await pilot.press("a", "enter", "b", "enter", *["ctrl+z"] * 6)
                return "alive"
        except ValueError as error:
            return str(error)

    said = asyncio.run(undo())
    assert "out of bounds" in said, "Textual's own text area survives this now: drop the override"

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("a", "ctrl+j", "b", "ctrl+j", *["ctrl+z"] * 6)
        assert stage.chat.prompt.text == ""

    play(scene, state=state)


def test_the_screen_follows_the_terminal_where_the_loop_is_held_up(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock is a second later than the one before."""
    seconds = itertools.count()

    class HeldUp:
        @staticmethod
        def get_time() -> float:
            return float(next(seconds))

    class Plain(App[None]):
        def compose(self) -> ComposeResult:
            yield TextArea()

    async def plain() -> int:
        app = Plain()
        async with app.run_test() as pilot:
            with monkeypatch.context() as late:
                late.setattr(timer, "_time", HeldUp)
                await pilot.resize_terminal(50, 20)
                await asyncio.sleep(0.1)
            return app.query_one(TextArea).outer_size.width

    assert asyncio.run(plain()) == 80, "Textual's own timer fires now: drop the override"

    async def scene(stage: Stage) -> None:
        await stage.ready()
        with monkeypatch.context() as late:
            late.setattr(timer, "_time", HeldUp)
            await stage.pilot.resize_terminal(50, 20)
            await stage.until(lambda: stage.chat.prompt.size.width <= 50)

    play(scene, state=state)
