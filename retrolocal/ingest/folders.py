"""From what the user named to the files to read: folders become their files, always in one order.

In a folder hidden entries, what .gitignore leaves out and folders of tools are passed over; links
are not followed; what is no text, generated or very large is left out and counted in a note. A
file that was named itself is never left out. Files are looked at, not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..errors import DocumentError, UsageError
from .formats import format_of
from .gitignore import GitIgnore
from .source import OpenFile, open_source, printable
from .text import looks_like_text

MAX_FILES = 100_000
MAX_SOURCE_BYTES = 1 << 20

_TOOL_FOLDERS = frozenset({"CVS", "_darcs", "__pycache__", "node_modules"})
_LOCK_FILES = frozenset(
    {"package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "yarn.lock", "bun.lock"}
    | {"poetry.lock", "pdm.lock", "uv.lock", "Pipfile.lock", "Cargo.lock", "composer.lock"}
    | {"Gemfile.lock", "go.sum", "flake.lock"}
)
_MINIFIABLE = frozenset({".js", ".mjs", ".cjs", ".css", ".json", ".map", ".svg"})
_MAX_MEAN_LINE = 500
_SHOWN_NAMES = 3
_CLOSED = "what may not be opened"

_Entry = tuple[os.DirEntry[str], str, GitIgnore]


@dataclass(frozen=True, slots=True)
class Selected:
    """A file to read."""

    path: Path | str
    """`-` is standard input."""
    name: str | None
    """As `Document.name`; None: the file's own."""
    is_named: bool
    """Whether the user named it, so that not being able to read it is an error."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to read in order, and remarks on what was left out, one line each."""

    files: tuple[Selected, ...]
    notes: tuple[str, ...]


def expand(paths: Sequence[str | Path]) -> Selection:
    """The files that `paths` name, in the order given; inside a folder sorted by name.

    A file that is reached twice is read once. Raises DocumentError for a folder without a file to
    read, or with more than `MAX_FILES`; UsageError when `-` comes twice.
    """
    if sum(str(path) == "-" for path in paths) > 1:
        raise UsageError("- was given twice; standard input is one document")
    named = {_identity(path) for path in paths}
    chosen: dict[object, Selected] = {}
    notes: list[str] = []
    for path in paths:
        folder = _Folder(Path(path)) if str(path) != "-" and os.path.isdir(path) else None
        files = [Selected(path, None, True)] if folder is None else folder.files()
        found = list(islice(files, MAX_FILES + 1))
        for file in found:
            identity = _identity(file.path)
            if identity not in chosen:
                chosen[identity] = Selected(file.path, file.name, identity in named)
            elif folder is None:
                notes.append(_twice(path))
        if folder is not None:
            notes += folder.notes()
            if not found:
                raise DocumentError("; ".join([f"{folder.label} holds no text", *folder.notes()]))
        if len(chosen) > MAX_FILES:
            raise DocumentError(
                f"more than {MAX_FILES:,} files were found in {printable(str(path))}; "
                "name smaller folders"
            )
    return Selection(tuple(chosen.values()), tuple(notes))


def given_once(paths: Sequence[str], tell: Callable[[str], None] = lambda line: None) -> list[str]:
    """Files in the order given, one that is reached twice once; `tell` is told of it."""
    chosen: dict[object, str] = {}
    for path in paths:
        if chosen.setdefault(_identity(path), path) is not path:
            tell(_twice(path))
    return list(chosen.values())


def _twice(path: Path | str) -> str:
    return f"{printable(str(path))} is given twice; it is read once"


def _identity(path: Path | str) -> object:
    """Equal for two ways to one file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return str(path)
    return found.st_dev, found.st_ino


@dataclass(slots=True)
class _Folder:
    """One walk through a folder; what it left out, by reason."""

    root: Path
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return printable(str(self.root))

    def files(self) -> Iterator[Selected]:
        stem = self.root.resolve().name
        waiting = self._entries(self.root, stem, GitIgnore.above(self.root))
        while waiting:
            entry, name, ignore = waiting.pop()
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting += self._entries(path, name, ignore)
                continue
            reason = _reason_against(entry, path)
            if reason is None:
                yield Selected(path, printable(name), False)
            else:
                self._leave_out(reason, name)

    def notes(self) -> list[str]:
        """One line for each reason."""
        lines = []
        for reason, names in self.left_out.items():
            shown = ", ".join(printable(name) for name in names[:_SHOWN_NAMES])
            more = ", …" if len(names) > _SHOWN_NAMES else ""
            lines.append(f"{self.label}: left out {reason} ({len(names)}): {shown}{more}")
        return lines

    def _entries(self, folder: Path, name: str, ignore: GitIgnore) -> list[_Entry]:
        """What to look at in a folder, the first at the end."""
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
        except OSError:
            self._leave_out(_CLOSED, name)
            return []
        ignore = ignore.inside(folder)
        found = []
        for entry in entries:
            own = f"{name}/{entry.name}" if name else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") or (is_folder and entry.name in _TOOL_FOLDERS):
                continue
            if ignore.excludes(Path(entry.path), is_folder=is_folder):
                self._leave_out("what .gitignore names", own)
            else:
                found.append((entry, own, ignore))
        return found

    def _leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)


def _reason_against(entry: os.DirEntry[str], path: Path) -> str | None:
    """Why a file in a folder is left out, as it goes on after `left out`."""
    if entry.is_symlink():
        return "links"
    if not entry.is_file(follow_symlinks=False):
        return "pipes, sockets or devices"
    if entry.name in _LOCK_FILES:
        return "lock files"
    try:
        with open_source(path) as source:
            return _reason_in(source)
    except (DocumentError, OSError):
        return _CLOSED


def _reason_in(source: OpenFile) -> str | None:
    if source.size == 0:
        return "empty files"
    found = format_of(source)
    if found is None or (found.is_text and not looks_like_text(source.head)):
        return "binary files"
    if source.suffix in found.suffixes or not found.is_text:
        return None
    if source.size > MAX_SOURCE_BYTES:
        return f"files of more than {MAX_SOURCE_BYTES >> 20} MB that are no documents"
    mean = len(source.head) / (1 + source.head.count(b"\n"))
    return "minified files" if source.suffix in _MINIFIABLE and mean > _MAX_MEAN_LINE else None
