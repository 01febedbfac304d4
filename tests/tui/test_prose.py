"""Markdown as it arrives: independent of how it was cut, nothing lost, nothing obeyed."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it.token import Token

from retrolocal.tui import prose as prose_module
from retrolocal.tui.foreign import one_line, visible
from retrolocal.tui.prose import Prose

FRAGMENTS = [
    "# A heading\n",
    "A paragraph of words, *some* **strong** and `code`.\n",
    "line one\nline two\n\n",
    "- one\n- two\n  - deeper\n    still\n- three\n",
    "1. first\n2. second\n\n   more of it\n10) other\n",
    "* a\n\n* b\n\n  para\n",
    "```python\ndef f(x):\n    return [x]\n```\n",
    "````\n```\n````\n",
    "```open\nnever closed\n",
    "    indented code\n\n    more\n",
    "| a | b |\n|---|:-:|\n| 1 | two words |\n| 三 | |\n",
    "> quoted\n> > deeper\n>\n> - item\n",
    "---\n",
    "Title\n=====\n",
    "[/path] [b + 3 [/] [bold]x[/bold] $text-accent @click\n",
    "\x1b[31mred\x1b]0;t\x07 \x00 \x9b \x7f\n",
    "日本語のテキスト 👩‍👩‍👧 é\u0301 \u202eabc\n",
    "\r\n\rcarriage\r",
    "[a link](http://example.org/x?a=b) ![image](i.png) <b>html</b> &amp;\n",
    "[name]: http://example.org\n[name]\n",
    "\t- tab\n",
    "   - indented\n  - less\n    - four\n",
    "-\n- \n*\n+ x\n",
    "\n\n",
    " ",
    "\\* \\[ ~~gone~~ __x__\n",
]


def markdown() -> st.SearchStrategy[str]:
    pieces = st.one_of(st.sampled_from(FRAGMENTS), st.text("ab -*#>|`~\n1.[]()\r\t_", max_size=12))
    return st.lists(pieces, max_size=8).map("".join)


def plain(prose: Prose, width: int = 40) -> list[str]:
    return [line.plain for line in prose.lines(width)]


@settings(max_examples=60, deadline=None)
@given(text=markdown(), cuts=st.lists(st.integers(0, 400), max_size=12), width=st.integers(8, 90))
def test_the_lines_do_not_depend_on_how_the_text_was_cut(
    text: str, cuts: list[int], width: int
) -> None:
    borders = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    streamed = Prose()
    for start, end in pairwise(borders):
        streamed.append(text[start:end])
        streamed.lines(width)
    whole = Prose()
    whole.append(text)
    assert streamed.source == whole.source
    assert streamed.lines(width) == whole.lines(width)
    streamed.finish()
    assert streamed.lines(width) == Prose(text).lines(width)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=8), width=st.integers(24, 90))
def test_every_word_is_shown_and_no_line_is_too_wide(parts: list[str], width: int) -> None:
    text = "\n".join(parts)
    lines = Prose(text).lines(width)
    assert all(line.cell_length <= width for line in lines)
    shown = re.sub(r"[\s▌]", "", "".join(line.plain for line in lines))
    # The language of a code block and an entity are Markdown's, not text.
    for word in set(re.findall(r"[a-z]{3,}", visible(text))) - {"amp", "python", "open"}:
        assert word in shown


@given(text=st.text())
def test_no_control_character_survives(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    shown.encode("utf-8")
    assert "\n" not in one_line(text, 20)
    assert len(one_line(text, 20)) <= 20


def test_words_of_each_kind_of_block() -> None:
    text = (
        "# Head\n\npara *em* [l](http://e.x)\nnext\n\n- one\n  1. deep\n- [/x]\n\n> q\n>\n> r\n\n"
        "| a | bb |\n|---|---|\n| c | 日本 |\n\n```py\nif x:\n\ty\n```\n\n---\n"
    )
    assert plain(Prose(text)) == [
        "Head",
        "",
        "para em l (http://e.x)",
        "next",
        "",
        "• one",
        "  1. deep",
        "• [/x]",
        "",
        "▌ q",
        "▌",
        "▌ r",
        "",
        "a │ bb  ",
        "──┼─────",
        "c │ 日本",
        "",
        "if x:" + " " * 35,
        "    y" + " " * 35,
        "",
        "────────",
    ]


def test_long_code_lines_are_cut_not_lost() -> None:
    code = "x" * 95
    lines = plain(Prose(f"```\n{code}\n```"), 40)
    assert "".join(line.strip() for line in lines) == code


def test_a_wide_table_wraps_its_cells() -> None:
    text = f"| key | value |\n|---|---|\n| a | {'word ' * 30}|\n"
    lines = plain(Prose(text), 30)
    assert all(len(line) <= 30 for line in lines)
    assert " ".join(lines).count("word") == 30


def test_code_blocks_for_copying() -> None:
    prose = Prose("a\n```py\nx = 1\n\n```\n\n    y\n\n- i\n  ```\n  z\n  ```\n")
    assert prose.code_blocks == ["x = 1\n", "y", "z"]


def test_a_link_definition_changes_nothing_that_was_shown() -> None:
    prose = Prose()
    prose.append("see [name] and more\n\nthen\n\n")
    before = plain(prose)
    prose.append("[name]: http://example.org\n")
    assert plain(prose)[: len(before)] == before


@pytest.mark.parametrize("row", ["- item **{}** of `it`\n", "{}. item\n", "word {}\n\n"])
def test_a_piece_costs_what_the_last_block_costs(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is parsed again for the 1,500th piece is no more than two blocks."""
    parsed: list[str] = []
    parser = prose_module._markdown()

    class Counting:
        def parse(self, text: str) -> list[Token]:
            parsed.append(text)
            return parser.parse(text)

    monkeypatch.setattr(prose_module, "_markdown", Counting)
    prose = Prose()
    prose.lines(70)
    for number in range(1500):
        prose.append(row.format(number))
    assert len(parsed) == 1500
    assert max(map(len, parsed)) <= 2 * len(row.format(1500))
