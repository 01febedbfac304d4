from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.ingest.pdf_text import assemble

PAGES = st.lists(
    st.text(st.sampled_from("ab é\u0301-\x02\ufffe\n\r\u00ad7xivﬁ"), max_size=60), max_size=25
)


@given(PAGES)
def test_page_map(raw: list[str]) -> None:
    text, pages = assemble(raw)
    assert [page.number for page in pages] == list(range(1, len(raw) + 1))
    position = 0
    for page in pages:
        assert position <= page.start <= page.end <= len(text)
        assert text[position : page.start].strip("\n") == ""
        position = page.end
    assert position == len(text)
    assert not set(text) & set("\x02\ufffe\r\u00ad")


def test_pages_are_joined_by_one_line_break() -> None:
    text, pages = assemble(["one\r\n", "", "two \r\nlines"])
    assert text == "one\ntwo\nlines"
    assert [(page.start, page.end) for page in pages] == [(0, 3), (3, 3), (4, 13)]


@pytest.mark.parametrize("mark", ["\ufffe", "\x02", "\u00ad\r\n"])
def test_broken_words_follow_the_document(mark: str) -> None:
    raw = f"compares right-hand. It com{mark}pares the right{mark}hand side with com{mark}pares"
    assert (
        assemble([raw])[0] == "compares right-hand. It compares the right-hand side with compares"
    )


def test_undecided_words_follow_the_majority() -> None:
    hyphened = "self-denial and half-hour; self\ufffedenial, half\ufffehour, ill\ufffefounded"
    assert assemble([hyphened])[0].endswith("ill-founded")
    joined = "Abbildung und Voraussetzung; Abbil\ufffedung, Voraus\ufffesetzung, Te\ufffetraeder"
    assert assemble([joined])[0].endswith("Tetraeder")


def test_capital_or_digit_keeps_the_hyphen() -> None:
    assert assemble(["Schwarz\ufffeWeiß, 32\ufffebit"])[0] == "Schwarz-Weiß, 32-bit"


def test_word_across_a_page_border_belongs_to_its_first_page() -> None:
    text, pages = assemble(["The conclusion: a conclu-", "sion, then more."])
    assert text == "The conclusion: a conclusion,\nthen more."
    assert text[pages[1].start : pages[1].end] == "then more."


def test_ligatures_and_composition() -> None:
    assert assemble(["e\u0301 ﬁne oﬀer ﬂow x² ½"])[0] == "é fine offer flow x² ½"


def body(number: int) -> str:
    word = "abcdefghijklmnopqrstuvwxyz"[number]
    return f"{word * 3} first line\r\nmiddle {word}\r\n{word * 2} last line"


def test_running_lines_go() -> None:
    raw = [
        f"{n + 8} 1.{n // 5} CHAPTER {'abcdef'[n // 4]}\r\n\r\n{body(n)}\r\nDraft of May\r\n- {n} -"
        for n in range(24)
    ]
    text, pages = assemble(raw)
    assert "CHAPTER" not in text
    assert "Draft" not in text
    assert text[pages[3].start : pages[3].end] == body(3).replace("\r", "")


def test_left_and_right_headers_go() -> None:
    raw = [f"{'The Title' if n % 2 else 'The Author'}\r\n{body(n)}" for n in range(24)]
    assert "The" not in assemble(raw)[0]


def test_lines_that_do_not_recur_stay() -> None:
    raw = [body(n) for n in range(24)]
    assert assemble(raw)[0] == "\n".join(raw).replace("\r", "")


def test_two_equal_pages_and_single_lines_stay() -> None:
    assert assemble(["same\r\nx", "same\r\ny"])[0] == "same\nx\nsame\ny"
    assert assemble([f"Page {n}" for n in range(9)])[0].count("Page") == 9
