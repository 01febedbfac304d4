"""What was measured on this machine on an earlier day: small JSON files in the cache directory.

A file that is missing or damaged is an empty one; where nothing can be written nothing is
remembered, and the next run measures again.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from .chats import write_private
from .paths import cache_dir


def remembered(name: str, fields: Collection[str]) -> dict[str, dict[str, Any]]:
    """The entries of a file that have exactly these fields, by their keys."""
    try:
        known = json.loads((cache_dir() / name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, dict) and set(v) == set(fields)}


def remember(name: str, key: str, entry: dict[str, Any]) -> None:
    """Adds an entry to a file, or replaces it; other entries have the same fields."""
    file = cache_dir() / name
    known = remembered(name, entry) | {key: entry}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_private(file, json.dumps(known, indent=1))
    except OSError:
        return
