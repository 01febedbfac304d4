"""The folder of a library: made, recognised, and refused when others can read it.

FORMAT         `retrolocal library 1`
CACHEDIR.TAG   backup programs leave the folder out
entries segments tails objects tmp     folders
writer opening                         lock files
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from ..errors import LibraryError
from ..paths import library_setting
from .filesystem import FileSystem
from .identity import FORMAT
from .locks import FORMAT_FILE, OBJECTS, OPENING, WRITER
from .publish import TMP, publish_bytes

ENTRIES = "entries"
FOLDERS = (TMP, ENTRIES, OBJECTS, "segments", "tails")
_TAG = "CACHEDIR.TAG"
_FORMAT_LINE = re.compile(rb"retrolocal library (\d{1,9})\n")
_TAG_CONTENT = b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by retrolocal.\n"
_OURS = {FORMAT_FILE, _TAG, WRITER, OPENING, *FOLDERS}


def check_place(fs: FileSystem) -> bool:
    """Whether there is a library; raises LibraryError for one that must not be used, and for a
    folder of something else."""
    try:
        status = os.stat(fs.root)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LibraryError(f"{fs.root} cannot be opened ({error.strerror})") from error
    _check_own(fs.root, status)
    line = _format_line(fs)
    _check_private(fs.root, status, made=line is not None)
    if line is None:
        return False
    known = _FORMAT_LINE.fullmatch(line)
    if known is None:
        raise LibraryError(
            f"{fs.root}/{FORMAT_FILE} is damaged; write `retrolocal library {FORMAT}` into it, "
            "or remove the library"
        )
    if int(known[1]) > FORMAT:
        raise LibraryError(
            f"{fs.root} was made by a newer retrolocal (format {int(known[1])}; this one reads "
            f"{FORMAT}); update retrolocal, or set {library_setting()} to another folder"
        )
    if int(known[1]) < FORMAT:
        raise LibraryError(
            f"{fs.root} was made by an older retrolocal (format {int(known[1])}; this one reads "
            f"{FORMAT}); remove it and ingest again"
        )
    return True


def make_place(fs: FileSystem) -> None:
    """Makes the library unless it is there; can be repeated. Raises LibraryError, OSError."""
    if check_place(fs):
        return
    for folder in ("", *FOLDERS):
        try:
            fs.make_folder(folder)
        except FileExistsError:
            continue
    for name in (WRITER, OPENING):
        with contextlib.suppress(FileExistsError):
            fs.close(fs.create(name))
    publish_bytes(fs, _TAG, _TAG_CONTENT)
    publish_bytes(fs, FORMAT_FILE, f"retrolocal library {FORMAT}\n".encode())


def _check_own(root: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise LibraryError(f"{root} is not a folder; give {library_setting()} a folder")
    if status.st_uid != os.geteuid():
        raise LibraryError(
            f"{root} belongs to another user; set {library_setting()} to a folder of your own"
        )


def _check_private(root: Path, status: os.stat_result, *, made: bool) -> None:
    """`made`: the folder is a library, not one that may become one."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 and not made:
        raise LibraryError(
            f"{root} is open to other users (mode {mode:04o}), who could read documents from it; "
            f"give {library_setting()} a new folder, which is made for you alone"
        )
    if mode & 0o077:
        raise LibraryError(
            f"{root} is open to other users (mode {mode:04o}), and documents can be read from it; "
            f"run: chmod -R go= '{root}'"
        )
    above = root.resolve().parent
    shared = stat.S_IMODE(os.stat(above).st_mode)
    if shared & 0o002 and not shared & stat.S_ISVTX:
        raise LibraryError(
            f"{above} can be written by all users (mode {shared:04o}), who could put another "
            f"library in the place of {root}; run: chmod o-w '{above}'"
        )


def _format_line(fs: FileSystem) -> bytes | None:
    """What FORMAT says; None in a folder that may become a library. Raises LibraryError."""
    line = None
    try:
        line = _read_format(fs)
        if _FORMAT_LINE.fullmatch(line):
            return line
    except FileNotFoundError:
        pass
    except OSError as error:
        raise LibraryError(f"{fs.root}/{FORMAT_FILE} cannot be read ({error})") from error
    try:
        names = set(fs.names(""))
    except OSError as error:
        raise LibraryError(f"{fs.root} cannot be read ({error.strerror})") from error
    # With all its folders it is a library, whatever else was put there.
    if names <= _OURS or (line is not None and names >= set(FOLDERS)):
        return line
    raise LibraryError(
        f"{fs.root} is not empty and not a retrolocal library; give {library_setting()} an "
        "empty or a new folder"
    )


def _read_format(fs: FileSystem) -> bytes:
    file = fs.open(FORMAT_FILE)
    try:
        return os.read(file, 100)
    finally:
        fs.close(file)
