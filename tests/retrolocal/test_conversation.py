from __future__ import annotations

from pathlib import Path

import pytest

from retrolocal.chat import ChatTemplate, Message
from retrolocal.conversation import Conversation, Prompter
from retrolocal.ingest import Chapter, Document, Page
from retrolocal.tokenizer import Tokenizer

DOCUMENTS = (
    Document(
        name="a",
        text="Größe zählt 🎉.",
        pages=(Page(1, 0, 5), Page(2, 6, 14)),
        chapters=(Chapter("Größe", 0, 14),),
        digest="",
        notes=(),
    ),
    Document(name="b", text="<s> is plain text here", pages=(), digest="", notes=()),
)


@pytest.fixture
def prompters(tiny_model: Path) -> list[Prompter]:
    tokenizer = Tokenizer.open(tiny_model)
    return [
        Prompter(tokenizer, None),
        Prompter(tokenizer, ChatTemplate.open(tiny_model, tokenizer)),
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_token_of_a_head_has_its_place(prompters: list[Prompter], count: int) -> None:
    conversation = Conversation(DOCUMENTS[:count], None, (Message("user", "?"),))
    for prompter in prompters:
        ids, places = prompter.head_places(conversation)
        assert ids == prompter.head_ids(conversation)
        assert len(ids) == len(places)
        covered: list[set[int]] = [set() for _ in range(count)]
        for token in range(len(ids)):
            place = places.lookup(token)
            if place is not None:
                document = DOCUMENTS[place.document]
                covered[place.document] |= set(range(place.start, place.end))
                assert place.page == document.page_at(place.start)
                assert place.chapter == document.chapter_at(place.start)
        assert covered == [set(range(len(document.text))) for document in DOCUMENTS[:count]]
