"""The application: themes, leaving, copying, the command palette; one chat screen.

`run` is the whole of it for the command line; tests make the same application with another
engine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.command import CommandPalette
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Size
from textual.screen import Screen
from textual.timer import Timer, TimerCallback

from . import slash
from .bridge import Bridge
from .chat_screen import ChatScreen
from .clipboard import Clipboard
from .engine import ChatSettings, Engine
from .leave_screen import LeaveScreen
from .palette import Palette
from .terminal import LEAVING_SIGNALS

AGAIN_SECONDS = 1.5
"""In which Ctrl+C in an empty prompt has to come twice to leave."""


class ChatApp(App[None]):
    """Leaves with `return_code`: 0, or 128 + n for signal n."""

    TITLE = "retrolocal"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS = [
        Binding("ctrl+q", "quit", "quit", priority=True),
        Binding("ctrl+c", "interrupt", "stop or leave", priority=True),
        Binding("ctrl+d", "end", "leave", priority=True),
    ]

    def __init__(
        self,
        engine: Engine,
        settings: ChatSettings,
        state: Path,
        clock: Callable[[], float] = time.monotonic,
        insist: Callable[[int], None] = lambda code: None,
    ) -> None:
        super().__init__()
        self.clock = clock
        """Seconds; what is shown of time is read from it."""
        self.state = state
        """Folder of chats, log and history."""
        self.left: int | None = None
        """The exit code once the user, or a signal, has decided to leave."""
        self.last_words: list[str] = []
        """What went wrong on leaving; said when the terminal is as it was."""
        self._chat: ChatScreen | None = None
        self._engine = engine
        self._settings = settings
        self._again_until = 0.0
        self._insist = insist
        """Told the exit code when a signal says to leave; sees to it that it happens."""
        self._handlers: dict[signal.Signals, Any] = {}
        """What signals did before the application."""
        self.clipboard_ways = Clipboard(
            environment=os.environ, send=self.copy_to_clipboard, keep=state / "copied.txt"
        )
        if not _has_many_colours(os.environ):
            self.theme = "ansi-dark"

    def get_default_screen(self) -> Screen[None]:
        self._chat = ChatScreen(self._engine, self._settings, self)
        return self._chat

    @property
    def chat(self) -> ChatScreen:
        assert self._chat is not None, "the application has been run"
        return self._chat

    def set_timer(
        self,
        delay: float,
        callback: TimerCallback | None = None,
        *,
        name: str | None = None,
        pause: bool = False,
    ) -> Timer:
        """A timer that fires, however late.

        Textual's own never does when its loop is held up, as by a thread that decodes, for longer
        than the delay while it begins: the screen then keeps its size for ever.
        """
        timer = super().set_timer(delay, callback, name=name, pause=pause)
        timer._skip = False
        return timer

    async def _on_resize(self, event: events.Resize) -> None:
        """Follows the size that the terminal has when it is told that there is another.

        Textual reads the size where the signal comes, which may be while it tells the one before:
        the older one then comes last, and would stay. It believes COLUMNS and LINES, which some
        shells and libraries export and nobody keeps up to date. A size that the terminal tells
        itself, with its pixels, comes in order.
        """
        if not self.is_headless and event.pixel_size is None and sys.__stdout__ is not None:
            event.prevent_default()
            size = Size(*os.get_terminal_size(sys.__stdout__.fileno()))
            await super()._on_resize(events.Resize(size, size))

    def on_mount(self) -> None:
        # Not by the loop: it stands still while the terminal takes nothing.
        loop = asyncio.get_running_loop()
        for number in LEAVING_SIGNALS:
            self._handlers[number] = signal.signal(number, partial(self._caught, loop))
        if not self.is_headless:
            self._handlers[signal.SIGCONT] = signal.signal(
                signal.SIGCONT, partial(self._continued, loop)
            )

    def on_unmount(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: Textual's own, and every slash command that needs no argument."""
        yield from super().get_system_commands(screen)
        for command in slash.COMMANDS:
            if not command.argument or command.argument.startswith("["):
                yield SystemCommand(f"/{command.name}", command.what, self._runner(command))

    def copy(self, text: str) -> None:
        """Copies a text and says how that was done."""
        if not text:
            self.chat.flash("there is nothing to copy")
            return
        self.run_worker(self._copy(text), group="copy")

    async def _copy(self, text: str) -> None:
        done = await self.clipboard_ways.copy(text)
        where = f"; it is also in {short_path(done.file)}" if done.file is not None else ""
        word = "copied" if done.certain else "sent to be copied"
        self.chat.flash(f"{word}: {len(text):,} characters, by {done.way}{where}")

    def clear_and_redraw(self) -> None:
        """Draws everything again, over whatever others wrote on the screen."""
        self.refresh(repaint=True, layout=True)

    def action_interrupt(self) -> None:
        """Ctrl+C: copies a selection, else stops, else clears the prompt, else leaves."""
        chat = self.chat
        selected = self.screen.get_selected_text() or chat.prompt.area.selected_text
        if selected:
            self.copy(selected)
            self.screen.clear_selection()
            area = chat.prompt.area
            area.move_cursor(area.cursor_location)
        elif self.screen is not chat:
            self.pop_screen()
        elif self.left is not None:
            self.leave()
        elif chat.desk.stop() or chat.leave_editing():
            return
        elif chat.prompt.text:
            chat.prompt.set_text("")
        elif self._again():
            self.leave(130)
        else:
            chat.flash("Ctrl+C again leaves")

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, CommandPalette):
            self.push_screen(Palette(id="--command-palette"))

    def action_end(self) -> None:
        """Ctrl+D: leaves from an empty prompt, deletes to the right in another."""
        area = self.chat.prompt.area
        if area.text and area.cursor_at_end_of_text and not area.selected_text:
            self.chat.flash("there is text in the prompt: Ctrl+C clears it, Ctrl+Q leaves")
        elif area.text:
            area.action_delete_right()
        else:
            self.run_worker(self.action_quit())

    def say_at_the_end(self, line: str) -> None:
        """Says a line when the screen is gone."""
        self.last_words.append(line)

    async def action_quit(self) -> None:
        """Asks once while something is being done, else leaves."""
        chat = self.chat
        if self.left is not None or isinstance(self.screen, LeaveScreen):
            self.leave()
        elif chat.desk.activity.busy:
            await self.push_screen(LeaveScreen(chat.desk.activity), self._leave_when)
        else:
            self.leave()

    def _leave_when(self, sure: bool | None) -> None:
        if sure:
            self.leave()

    def leave(self, code: int = 0, *, now: bool = False) -> None:
        """Keeps the chat with what the caches hold of it, then gives the terminal back.

        Called again, or with `now`, it keeps the text only and waits for nothing.
        """
        again, self.left = self.left is not None, code if self.left is None else self.left
        chat = self.chat
        if now or again:
            chat.commands.keep(chat.desk.partial)
            self._gone()
        else:
            chat.desk.leave(lambda: chat.commands.keep(chat.desk.partial), self._gone)

    def _gone(self) -> None:
        assert self.left is not None
        # Before anything that waits for the terminal.
        self.end_engine()
        self.exit(return_code=self.left)

    def end_engine(self) -> Bridge | None:
        """Ends the engine's work; its bridge is there to be waited for."""
        return None if self._chat is None else self._chat.end_engine()

    def hang_up(self) -> None:
        """Leaves as the signal says that tells of a terminal that is gone; from any thread."""
        self.call_later(self.leave, 128 + signal.SIGHUP, now=True)

    def _caught(self, loop: asyncio.AbstractEventLoop, number: int, frame: object) -> None:
        self._insist(128 + number)
        loop.call_soon_threadsafe(partial(self.leave, 128 + number, now=True))

    def _continued(self, loop: asyncio.AbstractEventLoop, number: int, frame: object) -> None:
        driver = self._driver
        if isinstance(driver, LinuxDriver) and driver._must_signal_resume:
            # It has given the terminal back before it was stopped.
            driver.resume_application_mode()
        else:
            loop.call_soon_threadsafe(self._take_terminal_again)

    def _take_terminal_again(self) -> None:
        """After a stop that nobody was told of: the shell may have used the terminal meanwhile.

        Textual alone would take what it finds for the state before the application, and leave a
        second thread behind that reads keys and outlives the application.
        """
        assert self._driver is not None
        self._driver.suspend_application_mode()
        self._driver.resume_application_mode()
        self.clear_and_redraw()

    def _again(self) -> bool:
        now = self.clock()
        again, self._again_until = now < self._again_until, now + AGAIN_SECONDS
        return again

    def _runner(self, command: slash.Command) -> Callable[[], None]:
        return lambda: self.chat.run_command(command)

    def _watch_app_focus(self, focus: bool) -> None:
        # Textual styles every widget anew when the terminal gains or loses the focus; nothing
        # here looks different then, and the prompt keeps the focus.
        return


def short_path(path: Path) -> str:
    """The path with `~` for the home directory."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _has_many_colours(environment: Mapping[str, str]) -> bool:
    """Whether the terminal says that it has more than 16 colours."""
    term = environment.get("TERM", "")
    return "256" in term or bool(environment.get("COLORTERM")) or "direct" in term
