"""Members of Textual that are overridden without being promised.

Each test fails when a release of Textual no longer calls or has what is overridden here; the
override is then wrong, or no longer needed.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from fakes import Stage, play
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

    import asyncio

    said = asyncio.run(undo())
    assert "out of bounds" in said, "Textual's own text area survives this now: drop the override"

    async def scene(stage: Stage) -> None:
        await stage.ready()
        await stage.pilot.press("a", "ctrl+j", "b", "ctrl+j", *["ctrl+z"] * 6)
        assert stage.chat.prompt.text == ""

    play(scene, state=state)
