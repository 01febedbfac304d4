"""The block of thinking: found wherever text is cut, and nothing lost or added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.generate import End, Piece, mark_thinking
from retrolocal.thinking import Thinking, opening, thoughts

REPLIES = {
    "<think>\nOne.\n</think>\n\nTwo.": ("<think>\nOne.\n</think>\n\n", "Two."),
    " \n<think></think>x": (" \n<think></think>", "x"),
    "<think>never ends </thin": ("<think>never ends </thin", ""),
    "<think>a</think> </think>b": ("<think>a</think> ", "</think>b"),
    "<think>a <think>b</think>c": ("<think>a <think>b</think>", "c"),
    "An answer with <think>tags</think>.": ("", "An answer with <think>tags</think>."),
    "<thin": ("", "<thin"),
    "<thinking>": ("", "<thinking>"),
    "  ": ("", "  "),
    "": ("", ""),
}


def split(pieces: Sequence[str], begun: str = "") -> tuple[str, str]:
    def events() -> Iterator[Piece | End]:
        for piece in pieces:
            yield Piece(piece)
        yield End("eos", len(pieces))

    told = list(mark_thinking(events(), begun))
    assert isinstance(told.pop(), End)
    found = [piece for piece in told if isinstance(piece, Piece)]
    assert all(piece.text for piece in found)
    flags = [piece.thinking for piece in found]
    assert flags == sorted(flags, reverse=True), "thinking comes before the answer"
    block, answer = (
        "".join(piece.text for piece in found if piece.thinking == thinking)
        for thinking in (True, False)
    )
    return block, answer


@pytest.mark.parametrize("reply", REPLIES, ids=repr)
def test_at_once_and_character_by_character(reply: str) -> None:
    assert split([reply]) == REPLIES[reply]
    assert split(list(reply)) == REPLIES[reply]


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "th", "ink>", "</", "a", " ", "\n"])))
def test_cuts_change_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    whole = split([text])
    assert split(pieces) == whole == split(list(text))
    assert "".join(whole) == text


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [("<|user|>x<|assistant|><think>\n", "<think>\n"), ("y<think>", "<think>"), ("z", "")],
)
def test_a_template_may_begin_the_block(prompt: str, begun: str) -> None:
    assert opening(prompt) == begun
    if begun:
        assert split(["One.</think>", "\n\nTwo."], begun) == (f"{begun}One.</think>\n\n", "Two.")
        assert split([], begun) == (begun, "")


def test_a_closed_block_in_the_prompt_is_no_beginning() -> None:
    assert opening("<|assistant|><think>\n\n</think>\n\n") == ""


def test_nothing_is_held_back_for_longer_than_a_tag_may_begin() -> None:
    thinking = Thinking()
    assert [p.text for p in thinking.push("<think>so")] == ["<think>", "so"]
    assert thinking.inside
    assert [p.text for p in thinking.push(" it <b> </")] == [" it <b> "]
    assert [p.text for p in thinking.push("b>")] == ["</b>"]
    assert [p.text for p in thinking.push("</think>Yes")] == ["</think>", "Yes"]
    assert not thinking.inside
    assert [p.text for p in thinking.push(" <th")] == [" <th"]


def test_what_a_block_says() -> None:
    assert thoughts("<think>\nOne.\n\nTwo.\n</think>\n\n") == "One.\n\nTwo."
    assert thoughts("<think>cut") == "cut"
    assert thoughts("") == ""
