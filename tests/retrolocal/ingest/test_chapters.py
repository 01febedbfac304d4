from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.ingest import Chapter
from retrolocal.ingest.chapters import MAX_TITLE, assemble, chapters_of, parse_piece
from retrolocal.ingest.guard import GuardError

PIECES = st.lists(st.tuples(st.none() | st.text(max_size=8), st.text(max_size=20)), max_size=8)


def test_assemble() -> None:
    text, chapters = assemble(
        [(None, "front \r\n"), ("A  b", "\n\nA b\n\n\n\ntext  "), ("none", " "), (None, "more")]
    )
    assert text == "front\n\nA b\n\n\n\ntext\n\nmore"
    assert chapters == (Chapter("A b", 7, len(text)),)


@given(PIECES)
def test_chapters_lie_in_order_in_the_text(pieces: list[tuple[str | None, str]]) -> None:
    text, chapters = assemble(pieces)
    end = 0
    for chapter in chapters:
        assert end <= chapter.start < chapter.end <= len(text)
        assert chapter.title
        assert "\n" not in chapter.title
        end = chapter.end
    assert text == text.strip("\n")


def test_titles_are_one_short_line() -> None:
    (chapter,) = chapters_of("x", [(0, "a\n" * MAX_TITLE)])
    assert len(chapter.title) == MAX_TITLE
    assert chapters_of("x", [(0, " ")]) == ()


@pytest.mark.parametrize("value", [None, [], ["a"], [1, "a"], ["a", None], {"a": "b"}])
def test_a_piece_is_checked(value: object) -> None:
    with pytest.raises(GuardError):
        parse_piece(value)
    assert parse_piece([None, "a"]) == (None, "a")
