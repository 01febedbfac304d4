"""What an answer was read from: planted passages are found, and mapped back to the text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from retrolocal.cache import DenseCache
from retrolocal.config import SamplingConfig, SessionConfig, WaveConfig
from retrolocal.ingest import Document, Page
from retrolocal.ingest.token_map import TokenMap
from retrolocal.session import AskOptions, Reply, Session
from retrolocal.sources import Source, passages
from retrolocal.wave.cache import WaveCache

TEXT = "One is first. Two is second! Three is third? Four is fourth. Five is fifth. " * 20


def document(text: str = TEXT, name: str = "numbers.txt", pages: Sequence[Page] = ()) -> Document:
    return Document(
        name=name, text=text, pages=tuple(pages), chapters=(), digest="0" * 64, extractor="x/1",
        notes=(),
    )  # fmt: skip


def by_character(documents: Sequence[Document], before: int = 3) -> TokenMap:
    """A map of one token per character, after some tokens of no document."""
    places = TokenMap(())
    places.append_other(before)
    for one in documents:
        ends = np.arange(1, len(one.text) + 1)
        places.append_document(one, np.stack((ends - 1, ends), axis=1))
    return places


def shares_at(count: int, weights: dict[int, float]) -> np.ndarray:
    shares = np.zeros(count, np.float32)
    for at, weight in weights.items():
        shares[at] = weight
    return shares


def test_a_peak_is_widened_to_its_sentence() -> None:
    one = document(pages=[Page(1, 0, 500), Page(2, 500, len(TEXT))])
    at = TEXT.index("Three", 600)
    places = by_character([one])
    found = passages(shares_at(len(places), {at + 5: 0.4}), places, [one], skip=0)
    assert [source.text for source in found] == ["Three is third?"]
    assert found[0] == Source(
        document="numbers.txt", page=2, start=at, end=at + 15, text="Three is third?",
        mass=pytest.approx(0.4),
    )  # fmt: skip


def test_passages_come_largest_first_and_apart() -> None:
    documents = [document(), document(TEXT.upper(), "loud.txt")]
    places = by_character(documents)
    low, high = TEXT.index("Five", 300), len(TEXT) + TEXT.index("Two", 900)
    shares = shares_at(len(places), {low + 5: 0.2, low + 6: 0.1, high + 5: 0.5, 3 + 4: 0.001})
    found = passages(shares, places, documents, skip=0)
    assert [(s.document, s.text) for s in found] == [
        ("loud.txt", "TWO IS SECOND!"),
        ("numbers.txt", "Five is fifth."),
    ]


def test_sinks_template_and_question_are_left_out() -> None:
    one = document()
    places = by_character([one], before=10)
    shares = shares_at(len(places) + 50, {0: 9.0, 5: 9.0, 12: 9.0, len(places) + 7: 9.0, 400: 0.1})
    found = passages(shares, places, [one], skip=14)
    assert len(found) == 1
    assert found[0].start <= 400 - 10 < found[0].end
    assert passages(shares_at(20, {}), places, [one], skip=4) == ()
    assert passages(shares_at(0, {}), places, [one], skip=4) == ()


@pytest.mark.parametrize("tokens", [40, 700])
def test_the_wave_caches_shares_are_those_of_a_dense_one(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    config = WaveConfig(segment_tokens=256, growth_tokens=64, window_tokens=16, store_type="bf16")
    wave, dense = WaveCache(config), DenseCache()
    k, v = (torch.randn(2, tokens + 5, 32, generator=generator) for _ in range(2))
    q = 2 * torch.randn(4, tokens + 5, 32, generator=generator)
    positions = torch.arange(tokens + 5)
    steps = [slice(0, tokens), *(slice(at, at + 1) for at in range(tokens, tokens + 5))]
    for number, rows in enumerate(steps):
        for cache in (wave, dense):
            cache.attend(q[:, rows], k[:, rows], v[:, rows], positions[rows])
        if number == 0:
            wave.reset_statistics()
    found = wave.read_from()
    assert found is not None
    asked = q[:, tokens - 1 :].transpose(0, 1).reshape(-1, 2, 2, 32) * 32**-0.5
    scores = torch.einsum("shgd,hnd->shgn", asked, k)
    expected = torch.softmax(scores, dim=3).mean((0, 1, 2))
    assert len(found) == tokens + 5
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0.05)


WORDS = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8").split()


def planted(seed: int) -> tuple[str, str, str]:
    """A text of shuffled words in sentences, a sentence in it, and its beginning."""
    source = random.Random(seed)
    clean = [word.strip(".,;:()\"'").lower() for word in WORDS if word.isascii()]
    sentences = [
        " ".join(source.choices(clean, k=source.randint(8, 16))).capitalize() + "."
        for _ in range(150)
    ]
    chosen = source.randrange(20, 130)
    return " ".join(sentences), sentences[chosen], " ".join(sentences[chosen].split()[:5])


@pytest.mark.parametrize(
    "documents", [8, pytest.param(100, marks=pytest.mark.slow)], ids=["8", "100"]
)
def test_a_planted_sentence_is_among_the_first_three(documents: int) -> None:
    hits = 0
    options = AskOptions(sampling=SamplingConfig(temperature=0.0), max_new_tokens=12)
    with Session.open("builtin", SessionConfig(cache="wave")) as session:
        for seed in range(documents):
            text, sentence, beginning = planted(seed)
            session.set_messages(())
            session.set_documents([document(text, f"{seed}.txt")])
            *_, reply = session.ask(beginning, options)
            assert isinstance(reply, Reply)
            hits += any(sentence[:-1] in source.text for source in reply.sources[:3])
            for source in reply.sources:
                assert text[source.start : source.end] == source.text
    assert hits >= 0.95 * documents - 0.4
