"""What the plain chat writes of a model that thinks before it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from retrolocal.cli import chat_parser
from retrolocal.config import SamplingConfig
from retrolocal.generate import Piece
from retrolocal.session import Reply
from retrolocal.statistics import CacheStatistics
from retrolocal.tui.plain import _Chat, _Screen

BLOCK = "<think>\nhm\n</think>\n\n"


class FakeSession:
    name = "m"
    load_seconds = 0.0

    def sampling(self, **given: float) -> SamplingConfig:
        return SamplingConfig()

    def stop(self) -> None: ...

    def ask(self, question: str, options: object) -> Iterator[Piece | Reply]:
        yield Piece(BLOCK[:9], thinking=True)
        yield Piece(BLOCK[9:], thinking=True)
        yield Piece("yes")
        cache = CacheStatistics(kind="dense", tokens=3, steady_tokens=3, clusters=0, bytes=9)
        yield Reply(
            text=f"{BLOCK}yes",
            thinking=BLOCK,
            stop_reason="eos",
            prompt_tokens=3,
            prefill_tokens=3,
            prefill_seconds=0.1,
            generated_tokens=4,
            generate_seconds=0.1,
            cache=cache,
        )


def written(capsys: Any, *words: str) -> tuple[str, str]:
    arguments = chat_parser().parse_args(list(words))
    session: Any = FakeSession()
    chat = _Chat(session, arguments, {}, _Screen(quiet=False))
    assert chat.run(iter(["why"])) == 0
    out, err = capsys.readouterr()
    return out, err


def test_elsewhere_it_is_written_as_it_is(capsys: Any) -> None:
    out, _ = written(capsys)
    assert out == f"{BLOCK}yes\n"


@pytest.mark.parametrize("colours", [True, False])
def test_on_a_terminal_it_is_dimmed(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, colours: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "" if colours else "1")
    out, _ = written(capsys)
    if colours:
        assert out == f"\x1b[2m{BLOCK[:9]}\x1b[0m\x1b[2m{BLOCK[9:]}\x1b[0myes\n"
    else:
        assert out == f"{BLOCK}yes\n"


def test_a_dumb_terminal_gets_no_codes(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert written(capsys)[0] == f"{BLOCK}yes\n"


def test_it_can_be_hidden(capsys: Any) -> None:
    out, err = written(capsys, "--hidethinking")
    assert out == "yes\n"
    assert err.count("thinking ...") == 1
    assert written(capsys, "--hidethinking", "-q")[0] == "yes\n"


def test_json_has_both(capsys: Any) -> None:
    facts = json.loads(written(capsys, "--json")[0])
    assert (facts["text"], facts["thinking"]) == ("yes", "hm")
