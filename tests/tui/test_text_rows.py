"""A text in rows: complete, never too wide, broken at spaces, wide characters counted as such."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from retrolocal.tui.source_view import find, page_at
from retrolocal.tui.text_rows import TextRows

TEXTS = st.text(st.sampled_from("ab  \n日é👩\u200d.\t"), max_size=200)


def rows(text: str, width: int) -> list[str]:
    starts, ends = TextRows(text).at_width(width)
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


@given(text=TEXTS, width=st.integers(2, 30))
def test_rows_are_the_text_but_for_the_spaces_they_end_at(text: str, width: int) -> None:
    starts, ends = TextRows(text).at_width(width)
    assert starts[0] == 0
    assert ends[-1] == len(text) or text[ends[-1] :] == " "
    between = [text[end:start] for end, start in zip(ends, starts[1:], strict=False)]
    assert set(between) <= {"", " ", "\n", " \n"}
    assert all(cell_len(row) <= width for row in rows(text, width))


@given(text=TEXTS, width=st.integers(2, 30))
def test_a_row_is_broken_only_where_it_must_be(text: str, width: int) -> None:
    starts, ends = TextRows(text).at_width(width)
    for start, end, following in zip(starts, ends, starts[1:], strict=False):
        if following == end and "\n" not in text[start : following + 1]:
            assert " " not in text[start + 1 : end]


@given(text=TEXTS, width=st.integers(2, 30), chunk=st.integers(1, 40))
def test_rows_do_not_depend_on_what_was_looked_at_together(
    text: str, width: int, chunk: int
) -> None:
    whole = rows(text, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrolocal.tui.text_rows.CHUNK", chunk)
        assert rows(text, width) == whole


def test_wrapping_of_words() -> None:
    assert rows("call me Ishmael. Some", 9) == ["call me", "Ishmael.", "Some"]
    assert rows("abcdefghij k", 4) == ["abcd", "efgh", "ij k"]
    assert rows("日本語 x", 4) == ["日本", "語 x"]
    assert rows("", 10) == [""]
    assert rows("a\n\nb\n", 10) == ["a", "", "b", ""]


def test_places_of_a_word() -> None:
    text = "The whale. A Whale! the end"
    assert find(text, "whale", -1, 1) == 4
    assert find(text, "whale", 4, 1) == 13
    assert find(text, "whale", 13, 1) == 4
    assert find(text, "whale", 4, -1) == 13
    assert find(text, "Whale", -1, 1) == 13
    assert find(text, "shark", 3, 1) == -1


def test_pages() -> None:
    pages = ((1, 0), (2, 10), (4, 25))
    assert [page_at(pages, at) for at in (0, 9, 10, 24, 25, 99)] == [1, 1, 2, 2, 4, 4]
    assert page_at((), 3) is None
