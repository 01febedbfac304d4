from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from retrolocal.errors import DataError
from retrolocal.ingest import Chapter, Document, Page

PAGES = (Page(1, 0, 3), Page(2, 3, 3), Page(3, 4, 7))


def make(text: str = "abc\ndef", pages: tuple[Page, ...] = PAGES) -> Document:
    return Document(name="a", text=text, pages=pages, digest="", notes=())


@pytest.mark.parametrize(
    ("offset", "number"), [(0, 1), (2, 1), (3, 1), (4, 3), (6, 3), (7, None), (-1, None)]
)
def test_page_at(offset: int, number: int | None) -> None:
    assert make().page_at(offset) == number


def test_page_at_of_a_text_without_pages() -> None:
    assert make(pages=()).page_at(0) is None


def test_documents_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().text = "x"  # type: ignore[misc]


WHOLE = Document(
    name="a",
    text="abc\ndef",
    pages=PAGES,
    digest="d",
    notes=("n",),
    chapters=(Chapter("One", 0, 3), Chapter("Two", 4, 7)),
    extractor="x/1",
)


def test_facts_and_text_are_the_document() -> None:
    value = json.loads(json.dumps(WHOLE.to_json()))
    assert "text" not in value
    assert Document.from_json(value, WHOLE.text) == WHOLE


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("name", None),
        ("notes", [1]),
        ("pages", [1, 0]),
        ("pages", [1, 0, True]),
        ("pages", [1, 0, 8]),
        ("pages", [1, 3, 2]),
        ("pages", [1, 0, 3, 2, 2, 4]),
        ("chapters", [["", 0, 1]]),
        ("chapters", [["a", "0", 1]]),
        ("chapters", [["a", -1, 1]]),
    ],
)
def test_facts_that_make_no_sense_are_refused(key: str, wrong: Any) -> None:
    value = copy.deepcopy(WHOLE.to_json())
    value[key] = wrong
    with pytest.raises(DataError, match="ingest it again"):
        Document.from_json(value, WHOLE.text)
    del value[key]
    with pytest.raises(DataError, match="ingest it again"):
        Document.from_json(value, WHOLE.text)
    with pytest.raises(DataError, match="ingest it again"):
        Document.from_json([], WHOLE.text)


def test_chapter_at() -> None:
    assert [WHOLE.chapter_at(n) for n in (-1, 0, 3, 4, 7)] == [None, "One", "One", "Two", None]
