"""The text of an HTML page in pieces, each from one heading to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from .markup import cut, read_markup


def work(file: BinaryIO, request: dict[str, Any]) -> Iterator[object]:
    """`file` is UTF-8; `request` has "is_xhtml". Yields [title or None, text]."""
    file.seek(0)
    page = read_markup(file.read().decode("utf-8"), is_xhtml=request["is_xhtml"])
    yield from cut(page.text, page.headings)
