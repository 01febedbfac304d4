"""Small files of a model folder, read with a limit: what they hold, or one line why not.

Every function takes the error to raise, so that a message comes as the kind of its reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import RetrolocalError

MAX_SETTINGS_BYTES = 16 << 20
"""Larger files than this hold no settings and no template."""


def read_limited(
    path: Path, error: type[RetrolocalError], limit: int = MAX_SETTINGS_BYTES
) -> bytes | None:
    """The bytes of a file, None where there is none."""
    try:
        with path.open("rb") as file:
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
