"""Small files of a model folder, read with a limit: what they hold, or one line why not.

Every function takes the error to raise, so that a message comes as the kind of its reader.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from .errors import RetrolocalError

MAX_SETTINGS_BYTES = 16 << 20
"""Larger files than this hold no settings and no template."""


GIT_LFS = b"version https://git-lfs"
"""How the small text file begins that stands where a large file was not downloaded."""
PAGES = (b"<!", b"<html", b"<HTML", b"<?xml")


def open_regular(path: Path) -> io.BufferedReader:
    """An ordinary file, open for reading: nobody waits for what may come out of a pipe.

    Raises OSError, also for anything else than a file.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(file).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def stand_in(beginning: bytes) -> str | None:
    """What a file that begins so is in place of the one that was to be downloaded, if it is."""
    if beginning.startswith(GIT_LFS):
        return "a Git LFS pointer, not the file itself; download it (git lfs pull)"
    if beginning.lstrip().startswith(PAGES):
        return "a web page, not the file itself; download it again"
    return None


def read_limited(
    path: Path, error: type[RetrolocalError], limit: int = MAX_SETTINGS_BYTES
) -> bytes | None:
    """The bytes of a file, None where there is none."""
    try:
        with open_regular(path) as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror})") from problem
    if len(data) > limit:
        raise error(f"{path} is larger than {limit >> 20} MiB; it is no such file")
    return data


def parse_object(path: Path, data: bytes, error: type[RetrolocalError]) -> dict[str, Any]:
    """The JSON object that `data`, the bytes of `path`, spells."""
    other = stand_in(data)
    if other is not None:
        raise error(f"{path} is {other}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is damaged ({one_line(problem)})") from problem
    if not isinstance(value, dict):
        raise error(f"{path} is damaged (it must hold a JSON object)")
    return value


def one_line(problem: BaseException) -> str:
    """What an exception says, for the middle of a message; it may quote the file it is about, so
    what a terminal would obey is spelt out."""
    text = " ".join(str(problem).split())[:200] or type(problem).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
