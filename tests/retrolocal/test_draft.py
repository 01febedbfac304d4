"""An answer that comes upon damage is made again: nothing is drawn twice and nothing told twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from retrolocal.config import SamplingConfig
from retrolocal.draft import Draft
from retrolocal.errors import DamagedError
from retrolocal.generate import Piece, Progress
from retrolocal.reply import Event

LOGITS = torch.zeros(50)


class Answer:
    """Five ids drawn from a flat distribution; comes upon damage before the ids named."""

    def __init__(self, draft: Draft, damage: list[int | None]) -> None:
        self.draft, self.damage = draft, damage

    def __call__(self) -> Iterator[Event]:
        yield Progress("prefill", 1, 1)
        sampler = self.draft.sampler(SamplingConfig(seed=7, top_k=0, min_p=0.0), [])
        damage = self.damage.pop(0)
        for number in range(5):
            if number == damage:
                raise DamagedError("a segment is damaged")
            yield Piece(str(self.draft.draw(lambda: sampler(LOGITS))))


def pieces(events: Iterator[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Piece)]


def undamaged() -> list[str]:
    draft = Draft(lambda: False, lambda: None)
    return pieces(draft.events(Answer(draft, [None])))


@pytest.mark.parametrize("damage", range(5))
def test_what_was_told_is_not_told_again(damage: int) -> None:
    dropped: list[int] = []
    draft = Draft(lambda: True, lambda: dropped.append(damage))
    found = pieces(draft.events(Answer(draft, [damage, None])))
    assert found == undamaged() == [str(token) for token in draft.drawn]
    assert len(set(found)) > 1
    assert dropped == [damage]


def test_what_nobody_would_read_again_is_an_error() -> None:
    draft = Draft(lambda: False, lambda: None)
    with pytest.raises(DamagedError, match="a segment is damaged"):
        pieces(draft.events(Answer(draft, [2])))


def test_damage_after_mending_is_an_error() -> None:
    draft = Draft(lambda: True, lambda: None)
    with pytest.raises(DamagedError):
        pieces(draft.events(Answer(draft, [2, 3])))


def test_damage_that_is_found_while_caches_are_given_back() -> None:
    def drop() -> None:
        raise DamagedError("another segment is damaged")

    draft = Draft(lambda: True, drop)
    assert pieces(draft.events(Answer(draft, [1, None]))) == undamaged()
