"""Copying out of a terminal: the ways there are, tried in order, and which one was used.

Inside tmux its own buffer (which passes the text on where it can), over ssh the terminal (OSC
52), otherwise the desktop's tool, then the terminal. OSC 52 is never confirmed by anyone, so the
text is also kept in a file whenever it was the way. Never raises because of a missing tool.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 2.0
"""Longer than this no tool may take."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What happened to a text."""

    way: str
    """For the user: `tmux`, `the terminal`, `wl-copy` ..."""
    certain: bool
    file: Path | None = None
    """Where the text also is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipboard:
    """`environment` says where we are; `send` writes OSC 52; `keep` is the file of last resort."""

    environment: Mapping[str, str]
    send: Callable[[str], None]
    keep: Path

    async def copy(self, text: str) -> Copied:
        """Copies; the result says how, and where else the text is."""
        if self.environment.get("TMUX"):
            for command in (["tmux", "load-buffer", "-w", "-"], ["tmux", "load-buffer", "-"]):
                if await self._run(command, text):
                    return Copied("tmux", certain=True)
        remote = any(self.environment.get(name) for name in ("SSH_TTY", "SSH_CONNECTION"))
        if not remote:
            for command in self._tools():
                if await self._run(command, text):
                    return Copied(command[0], certain=True)
        self.send(text)
        return Copied("the terminal", certain=False, file=self._keep(text))

    def _tools(self) -> list[list[str]]:
        tools = [["pbcopy"]]
        if self.environment.get("WAYLAND_DISPLAY"):
            tools.append(["wl-copy"])
        if self.environment.get("DISPLAY"):
            tools += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
        if self.environment.get("WSL_DISTRO_NAME"):
            tools.append(["clip.exe"])
        return tools

    async def _run(self, command: list[str], text: str) -> bool:
        path = self.environment.get("PATH")
        program = shutil.which(command[0], path=path)
        if program is None:
            return False
        quiet = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *command[1:],
                stdin=asyncio.subprocess.PIPE,
                stdout=quiet,
                stderr=quiet,
                env=dict(self.environment),
            )
        except OSError:
            return False
        try:
            await asyncio.wait_for(process.communicate(text.encode("utf-8", "replace")), SECONDS)
        except (TimeoutError, OSError):
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return False
        return process.returncode == 0

    def _keep(self, text: str) -> Path | None:
        try:
            self.keep.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.keep.unlink(missing_ok=True)
            descriptor = os.open(self.keep, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError:
            return None
        return self.keep
