"""A model that thinks before it answers: what a session tells, keeps and asks with next."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import retrolocal
from retrolocal.generate import Piece
from retrolocal.session import Reply, Session

TEMPLATE = (
    "<s>{% for m in messages %}[{{ m['role'] }}]"
    "{{ m['content'].split('</think>')[-1] | trim }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]BEGUN{% endif %}"
)


class Scripted:
    """A decoder whose next token is the next one of a script."""

    def __init__(self, decoder: Any, script: Sequence[int]) -> None:
        self._decoder = decoder
        self._script = list(script)

    def __call__(self, token_ids: Any, positions: Any, caches: Any, wanted: int, *rest: Any) -> Any:
        logits = self._decoder(token_ids, positions, caches, wanted, *rest)
        if wanted:
            logits[-1] = 0
            logits[-1, self._script.pop(0)] = 100
        return logits


def scripted(tiny_model: Path, folder: Path, *replies: str, begun: str = "") -> Session:
    """A session whose template ends with `begun` and that answers with these texts."""
    shutil.copytree(tiny_model, folder)
    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text()) | {"chat_template": TEMPLATE.replace("BEGUN", begun)}
    path.write_text(json.dumps(facts))
    session = retrolocal.load(str(folder))
    (end,) = session.tokenizer.end_ids
    ids = [
        token
        for reply in replies
        for token in (*session.tokenizer.encode_raw(reply, parse_special=False), end)
    ]
    session._decoder = Scripted(session._decoder, ids)  # type: ignore[assignment]
    return session


@pytest.mark.parametrize("begun", ["", "<think>\n"], ids=["by the model", "by the template"])
def test_thinking_is_told_apart_and_left_out_of_the_next_turn(
    begun: str, tiny_model: Path, tmp_path: Path
) -> None:
    whole = "<think>\nhm, 2\n</think>\n\nyes"
    written = whole.removeprefix(begun)
    session = scripted(tiny_model, tmp_path / "m", written, written, begun=begun)
    *events, reply = session.ask("one")
    assert isinstance(reply, Reply)
    pieces = [event for event in events if isinstance(event, Piece)]
    assert "".join(piece.text for piece in pieces) == reply.text == whole
    assert (reply.thinking, reply.answer) == ("<think>\nhm, 2\n</think>\n\n", "yes")
    assert "".join(piece.text for piece in pieces if not piece.thinking) == "yes"
    assert session.messages[-1].content == whole
    list(session.ask("two"))
    assert session._context is not None
    assert session._context.dialogue.startswith(
        f"<s>[user]one[assistant]yes</s>[user]two[assistant]{begun}"
    )


def test_only_the_answer_is_generated(tiny_model: Path, tmp_path: Path) -> None:
    session = scripted(tiny_model, tmp_path / "m", "<think>a</think>\nb <think>")
    assert session.generate("one") == "b <think>"
