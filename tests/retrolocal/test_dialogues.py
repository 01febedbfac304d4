"""A dialogue that was kept goes on as if it had never been away, without being read again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retrolocal.config import SamplingConfig, SessionConfig, WaveConfig
from retrolocal.errors import DamagedError, Interrupted, LibraryError
from retrolocal.generate import Piece
from retrolocal.ingest import Document
from retrolocal.library import Library, open_loose
from retrolocal.session import AskOptions, Reply, Session
from retrolocal.shelf import Keeping, document_of

WAVE = WaveConfig(segment_tokens=256, growth_tokens=64, sink_tokens=4, window_tokens=16, least=64)
CONFIG = SessionConfig(cache="wave", batch_size=100, wave=WAVE)
OPTIONS = AskOptions(sampling=SamplingConfig(temperature=0.0), max_new_tokens=40, ignore_eos=True)
WORDS = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "chats").mkdir()
    return tmp_path / "chats" / "one.safetensors"


@pytest.fixture
def book(tmp_path: Path) -> Document:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(random.Random(1).choices(WORDS, k=700)), encoding="utf-8")
    return document_of(path)


def opened(
    library: Library | None, *documents: Document, config: SessionConfig = CONFIG, model: str = ""
) -> Session:
    keeping = None if library is None else Keeping(library=library)
    return Session.open(model or "builtin", config, documents=documents, keeping=keeping)


def ask(session: Session, question: str) -> Reply:
    *_, reply = session.ask(question, OPTIONS)
    assert isinstance(reply, Reply)
    return reply


def questions(book: Document) -> list[str]:
    return [book.text[at : at + 60] for at in (200, 900, 1500)]


def turns_on(
    first: Session, again: Callable[[], Session], place: Path, asked: list[str]
) -> tuple[Reply, Reply]:
    """The last question's reply where the chat went on, and where it was reopened for it."""
    for question in asked[:-1]:
        ask(first, question)
    assert first.keep_dialogue(place)
    messages = first.messages
    on = ask(first, asked[-1])
    first.close()
    second = again()
    second.set_messages(messages)
    assert second.open_dialogue(place)
    reopened = ask(second, asked[-1])
    second.close()
    return on, reopened


def same(one: Reply, other: Reply) -> None:
    assert other.text == one.text
    assert other.prompt_tokens == one.prompt_tokens
    assert other.prefill_tokens == one.prefill_tokens
    # Beside the store, a living session keeps what its snapshots may reopen.
    assert replace(other.cache, bytes=0) == replace(one.cache, bytes=0)


@pytest.mark.parametrize("cache", ["wave", "dense"])
@pytest.mark.parametrize("store_type", ["bf16", "int8"])
def test_a_reopened_dialogue_reads_its_question_only(
    library: Library, place: Path, book: Document, cache: str, store_type: str
) -> None:
    config = replace(CONFIG, cache=cache, wave=replace(WAVE, store_type=store_type))  # type: ignore[arg-type]
    asked = questions(book)

    def again() -> Session:
        return opened(library, book, config=config)

    on, reopened = turns_on(again(), again, place, asked)
    same(on, reopened)
    assert reopened.prefill_tokens < 100 < reopened.prompt_tokens
    if cache == "wave":
        assert reopened.cache.clusters > 0
        # The documents are in the library; a dense layer is kept as what it grew by.
        assert place.stat().st_size < sum(
            path.stat().st_size for path in library.path.rglob("*.safetensors")
        )


def test_a_dialogue_without_documents(library: Library, place: Path, book: Document) -> None:
    on, reopened = turns_on(
        opened(library), lambda: opened(library), place, [book.text[:1500], *questions(book)]
    )
    same(on, reopened)


def test_a_segment_under_work_is_taken_up_where_it_would_have_been(
    library: Library, place: Path, book: Document
) -> None:
    """Kept at every length of an answer: between cuts, while one is prepared, after it."""
    for length in (30, 62, 94):
        options = replace(OPTIONS, max_new_tokens=length)
        first = opened(library, book)
        list(first.ask(book.text[300:360], options))
        assert first.keep_dialogue(place)
        messages = first.messages
        on = ask(first, "more of it")
        first.close()
        second = opened(library, book)
        second.set_messages(messages)
        assert second.open_dialogue(place)
        same(on, ask(second, "more of it"))
        second.close()


def test_a_reopened_dialogue_is_kept_again_and_goes_on(
    library: Library, place: Path, book: Document
) -> None:
    asked = questions(book)
    whole = opened(library, book)
    expected = [ask(whole, question).text for question in asked]
    whole.close()
    found, messages = [], ()
    for question in asked:
        session = opened(library, book)
        session.set_messages(messages)
        assert session.open_dialogue(place) == bool(messages)
        found.append(ask(session, question).text)
        messages = session.messages
        assert session.keep_dialogue(place)
        session.close()
    assert found == expected


def test_another_question_in_its_place_reads_the_dialogue_again(
    library: Library, place: Path, book: Document
) -> None:
    asked = questions(book)
    first = opened(library, book)
    ask(first, asked[0])
    before = first.messages
    ask(first, asked[1])
    whole = first.messages
    assert first.keep_dialogue(place)
    first.close()
    fresh = opened(library, book)
    fresh.set_messages(before)
    expected = ask(fresh, asked[2])
    fresh.close()
    second = opened(library, book)
    second.set_messages(before)
    assert not second.open_dialogue(place)
    second.set_messages(whole)
    assert second.open_dialogue(place)
    second.set_messages(before)
    reply = ask(second, asked[2])
    same(expected, reply)
    second.close()


def test_a_question_without_its_answer_is_not_taken_up(
    library: Library, place: Path, book: Document
) -> None:
    first = opened(library, book)
    events = first.ask(questions(book)[0], OPTIONS)
    while not isinstance(next(events), Piece):
        pass
    events.close()  # type: ignore[attr-defined]
    assert first.messages == ()
    first.keep_dialogue(place)
    expected = ask(first, questions(book)[0])
    first.close()
    second = opened(library, book)
    assert not second.open_dialogue(place)
    assert ask(second, questions(book)[0]).text == expected.text
    second.close()


def test_what_does_not_fit_is_not_opened(
    library: Library, place: Path, book: Document, tmp_path: Path, tiny_model: Path
) -> None:
    first = opened(library, book)
    assert not first.keep_dialogue(place)
    assert not place.exists()
    ask(first, questions(book)[0])
    assert first.keep_dialogue(place)
    expected = ask(first, questions(book)[1])
    first.close()
    other = tmp_path / "other.txt"
    other.write_text("Something else. " * 100)
    for session in (
        opened(library, document_of(other)),
        opened(library),
        opened(library, book, config=replace(CONFIG, dtype="float32")),
        opened(library, model=str(tiny_model)),
        opened(None, book),
    ):
        assert not session.open_dialogue(place)
        session.close()
    session = opened(library, book)
    assert not session.open_dialogue(place.with_name("none.safetensors"))
    ask(session, questions(book)[0])
    with pytest.raises(LibraryError, match="text is kept"):
        session.keep_dialogue(place.parent / "no folder" / "x.safetensors")
    assert session.open_dialogue(place)
    assert ask(session, questions(book)[1]).text == expected.text
    session.close()


def test_documents_that_are_not_kept_keep_no_dialogue(place: Path, book: Document) -> None:
    session = opened(None, book)
    ask(session, questions(book)[0])
    assert not session.keep_dialogue(place)
    assert not place.exists()
    session.close()


def test_a_stop_while_reading_leaves_nothing_to_keep(
    library: Library, place: Path, book: Document
) -> None:
    session = opened(library, book)
    events = session.ask(questions(book)[0], OPTIONS)
    next(events)
    session.stop()
    with pytest.raises(Interrupted):
        list(events)
    assert not session.keep_dialogue(place)
    session.close()


def test_every_changed_byte_is_found(library: Library, place: Path, book: Document) -> None:
    session = opened(library)
    ask(session, "a few words")
    assert session.keep_dialogue(place)
    session.close()
    good = bytearray(place.read_bytes())
    assert oct(place.stat().st_mode & 0o777) == "0o600"
    spots = [*range(0, 4096, 61), *random.Random(2).sample(range(4096, len(good)), 60)]
    for at in spots:
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        place.write_bytes(bad)
        with pytest.raises(DamagedError):
            open_loose(place)
    for length in (0, 7, 100, 4096, len(good) - 1):
        place.write_bytes(good[:length])
        with pytest.raises(DamagedError):
            open_loose(place)
    place.write_bytes(good)
    assert open_loose(place) is not None
