from __future__ import annotations

import dataclasses

import pytest

from retrolocal.ingest import Document, Page

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
