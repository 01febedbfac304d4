"""The commands that begin with a slash: names, arguments, completion, the nearest name.

Knows no widget: a command is a name that the chat screen has a method for (`command_<name>`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError
from . import answering
from .prompt_bar import Completion

PATHS_READ = 10_000
"""Entries of a folder that are looked at."""


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    argument: str
    """How help names its argument; in brackets when it may be left out; empty for none."""
    what: str


COMMANDS: tuple[Command, ...] = (
    Command("file", "PATH", "add a document to the conversation"),
    Command("docs", "", "list the documents"),
    Command("drop", "[NAME]", "take a document out of the conversation (default: the last)"),
    Command("source", "[N]", "show the passage N that the last answer was read from"),
    Command("copy", "[N]", "copy the last answer, or the N-th from the end"),
    Command("code", "[N]", "copy the last code block, or the N-th of the answer"),
    Command("edit", "", "edit the last question; sending it replaces its answer"),
    Command("retry", "", "ask the last question again"),
    Command("set", "[NAME VALUE]", "how the next answers are drawn: temp, top-k, predict, ..."),
    Command("new", "", "begin a new conversation about the same documents"),
    Command("chats", "", "open an earlier chat"),
    Command("rename", "TITLE", "name this chat"),
    Command("export", "[PATH]", "write this chat as Markdown"),
    Command("stats", "", "what the cache did for the last answer"),
    Command("theme", "[NAME]", "choose the colours"),
    Command("log", "", "where the log is"),
    Command("help", "", "keys and commands"),
    Command("quit", "", "leave"),
)
_BY_NAME = {command.name: command for command in COMMANDS}


def parse(text: str) -> tuple[Command, str] | None:
    """The command and its argument; None for text that is a question (`//` sends a slash).

    Raises UsageError for an unknown command, with the nearest name, for an argument too many or
    one that is missing.
    """
    if not text.startswith("/") or text.startswith("//"):
        return None
    name, _, argument = text[1:].strip().partition(" ")
    argument = argument.strip()
    command = _BY_NAME.get(name)
    if command is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        if dropped_file(text) is not None:
            hint = "/file PATH makes a file a document"
        raise UsageError(f"there is no command /{name}; {hint} (// sends a slash)")
    if argument and not command.argument:
        raise UsageError(f"/{name} takes nothing after it, and {argument!r} was given")
    if command.argument and not command.argument.startswith("[") and not argument:
        raise UsageError(f"/{name} needs {command.argument}")
    return command, argument


def question_of(text: str) -> str:
    """The text to send: `//` at its beginning stands for one slash."""
    return text[1:] if text.startswith("//") else text


def number(argument: str, name: str) -> int:
    """A counting number, 1 when nothing is given; raises UsageError."""
    if not argument:
        return 1
    if not argument.isascii() or not argument.isdecimal() or int(argument) < 1:
        raise UsageError(f"/{name} {argument}: give a number from 1 on")
    return int(argument)


def complete(text: str) -> Sequence[Completion]:
    """How a command line may go on: names of commands, then paths for /file.

    A path alone, as a terminal types it when a file is dropped on it, may become a document, and
    so may one that is typed behind an @.
    """
    if text.startswith("@"):
        return [
            one if one.text.endswith("/") else replace(one, text=f"/file {one.text[1:]}")
            for one in paths(text[1:], "@")
        ]
    file = dropped_file(text)
    if file is not None:
        return [Completion(f"/file {file}", "/file", f"{file.name}: Tab makes it a document")]
    if not text.startswith("/") or text.startswith("//"):
        return ()
    name, space, argument = text[1:].partition(" ")
    if not space:
        return [
            Completion(
                f"/{command.name}" + (" " if command.argument else ""),
                f"/{command.name}",
                f"{command.argument} {command.what}".strip(),
            )
            for command in COMMANDS
            if command.name.startswith(name)
        ]
    if name == "set":
        return answering.complete(argument, "/set ")
    return paths(argument, f"/{name} ") if name in ("file", "export") else ()


def dropped_file(text: str) -> Path | None:
    """The file whose path is all that was typed, perhaps in quotes or with escaped spaces."""
    plain = text.strip()
    if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "'\"":
        plain = plain[1:-1]
    else:
        plain = plain.replace("\\ ", " ")
    if not plain.startswith(("/", "~/")) or "\n" in plain:
        return None
    path = Path(plain).expanduser()
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def paths(typed: str, before: str) -> list[Completion]:
    """Entries of the folder that is being typed; hidden ones only when asked for."""
    folder, _, beginning = typed.rpartition("/")
    here = Path(os.path.expanduser(folder + "/" if folder or typed.startswith("/") else "."))
    found = []
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                if not entry.name.startswith(beginning):
                    continue
                if entry.name.startswith(".") and not beginning.startswith("."):
                    continue
                end = "/" if entry.is_dir() else ""
                found.append(entry.name + end)
                if len(found) >= PATHS_READ:
                    break
    except OSError:
        return []
    stem = typed[: len(typed) - len(beginning)]
    return [Completion(f"{before}{stem}{name}", name) for name in sorted(found)]
