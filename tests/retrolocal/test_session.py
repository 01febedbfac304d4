"""A session over a tiny random model: what is read, kept, dropped, and refused."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import retrolocal
from retrolocal import memory
from retrolocal.config import SessionConfig, WaveConfig
from retrolocal.crossover import Crossover, Shape, crossover
from retrolocal.errors import (
    ContextError,
    DocumentError,
    Interrupted,
    MemoryLimitError,
    ModelError,
    UsageError,
)
from retrolocal.generate import Piece, Progress
from retrolocal.ingest.extract import read_document
from retrolocal.session import AskOptions, Event, Reply, Session, load

SHORT = AskOptions(max_new_tokens=12)


@pytest.fixture
def session(tiny_model: Path) -> Session:
    return load(str(tiny_model), batch_size=64)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} tells of {i * i % 97} ships. " for i in range(90)))
    return path


def reply(events: Iterable[Event]) -> Reply:
    last = list(events)[-1]
    assert isinstance(last, Reply)
    return last


def greedy(session: Session, **settings: object) -> AskOptions:
    return AskOptions(sampling=session.sampling(temperature=0.0), **settings)  # type: ignore[arg-type]


def test_events_come_in_order_and_add_up(session: Session) -> None:
    events = list(session.ask("hello", greedy(session, max_new_tokens=20)))
    kinds = [type(event) for event in events]
    assert kinds[0] is Progress
    assert kinds[-1] is Reply
    last = reply(events)
    assert "".join(e.text for e in events if isinstance(e, Piece)) == last.text
    assert last.generated_tokens <= 20
    assert last.prompt_tokens == last.prefill_tokens == len("[user]hello[assistant]") + 1


def test_the_next_question_reads_only_itself(session: Session, tiny_model: Path) -> None:
    options = greedy(session, max_new_tokens=15)
    first = reply(session.ask("one", options))
    second = reply(session.ask("two", options))
    assert second.prompt_tokens > first.prompt_tokens + first.generated_tokens
    assert second.prefill_tokens < 30
    fresh = load(str(tiny_model))
    fresh._conversation = session._conversation.__class__(
        messages=session._conversation.messages[:2]
    )
    assert reply(fresh.ask("two", options)).text == second.text


@pytest.mark.parametrize("cache", ["dense", "wave"])
def test_files_stay_read(tiny_model: Path, book: Path, cache: str) -> None:
    session = load(str(tiny_model), cache=cache)
    options = greedy(session, max_new_tokens=8)
    first = reply(session.stream("who?", [book], options=options))
    again = reply(session.stream("who?", [book], options=options))
    other = reply(session.stream("why so?", [book], options=options))
    assert first.text == again.text
    assert first.cache.kind == cache
    assert first.prefill_tokens > 2000
    assert again.prefill_tokens < 30
    assert other.prefill_tokens < 30
    assert session.generate("who?", [book], max_new_tokens=8, temperature=0) == first.text
    assert session.generate("who?", str(book), max_new_tokens=8, temperature=0) == first.text
    assert reply(session.stream("who?", options=options)).prompt_tokens < 30


def test_full_budget_writes_what_dense_writes(tiny_model: Path, book: Path) -> None:
    texts = {
        load(str(tiny_model), cache=cache, budget=1.0).generate(
            "who?", [book], max_new_tokens=30, temperature=0
        )
        for cache in ("dense", "wave")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(("segments", "kind"), [(1, "wave"), (None, "dense")])
def test_auto_is_wave_from_the_measured_length_on(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    segments: int | None,
    kind: str,
) -> None:
    def measured(shape: Shape, config: WaveConfig) -> Crossover:
        return Crossover(decode=segments, prefill=None)

    monkeypatch.setattr("retrolocal.caches.crossover", measured)
    small = WaveConfig(segment_tokens=256, growth_tokens=64)
    session = Session.open(str(tiny_model), SessionConfig(wave=small))
    long = tmp_path / "long.txt"
    long.write_text("some words of a book " * 100)
    assert reply(session.stream("a", [long], options=SHORT)).cache.kind == kind
    assert reply(session.stream("a", options=SHORT)).cache.kind == "dense"


def test_what_pays_is_measured_once_where_nothing_can_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text is named after how it is read, and read so."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("retrolocal.remembered.cache_dir", lambda: tmp_path / "file")
    timed = itertools.count(1)
    monkeypatch.setattr("retrolocal.crossover._first_won", lambda *race: next(timed))
    shape = Shape(
        q_heads=2, kv_heads=1, head_dim=16, dtype=torch.float32, device=torch.device("cpu")
    )
    config = WaveConfig(segment_tokens=128, growth_tokens=64)
    assert crossover(shape, config) == crossover(shape, config) == Crossover(decode=1, prefill=2)


def test_logits_leave_the_conversation_alone(session: Session) -> None:
    options = greedy(session, max_new_tokens=5)
    ids = session.tokenizer.encode("some text to score", special=False)
    before = session.logits(ids)
    session_text = reply(session.ask("x", options)).text
    after = session.logits(ids)
    assert torch.equal(before, after)
    assert before.shape == (len(ids), 259)
    assert before.dtype == torch.float32
    assert reply(session.stream("x", options=options)).text == session_text


@pytest.mark.parametrize("batch", [1, 7, 64, 8192])
def test_logits_do_not_depend_on_the_batch(tiny_model: Path, batch: int) -> None:
    ids = list(range(100))
    whole = load(str(tiny_model)).logits(ids)
    chunked = load(str(tiny_model), batch_size=batch).logits(ids)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=1e-4)


def test_logits_refuses(session: Session) -> None:
    with pytest.raises(UsageError, match="token id 259 is outside the vocabulary of 259"):
        session.logits([1, 259])
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for wrong in ("abc" * 1000, [1, 2.5], [None], table):
        with pytest.raises(
            UsageError, match=r"^\S.{,50} holds no token ids; give whole numbers, such as"
        ):
            session.logits(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no token ids"):
        session.logits([])
    with pytest.raises(ContextError, match=r"5,000 tokens .* 4,096"):
        session.logits([1] * 5000)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": None}, "a message is None; give text"),
        ({"prompt": b"x"}, "a message is b'x'; give text"),
        ({"prompt": "x", "files": 5}, "files is 5; give a path, or several"),
        ({"prompt": "x", "files": [None]}, r"files is \[None\]; give a path, or several"),
        ({"prompt": "x", "max_new_tokens": "9"}, "max_new_tokens is '9'; give a whole number"),
        ({"prompt": "x", "max_new_tokens": 1.5}, "max_new_tokens is 1.5; give a whole number"),
        ({"prompt": "x", "temperature": "hot"}, "temperature is 'hot'; give a number"),
        ({"prompt": "x", "temperature": True}, "temperature is True; give a number"),
        ({"prompt": "x", "temperature": 10**400}, r"temperature is 1000*\.\.\.0*; give a number"),
        ({"prompt": bytes(1000)}, r"a message is .{,60}; give text"),
    ],
)
def test_what_is_no_text_file_or_number_is_said(
    session: Session, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        session.generate(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"threads": "x"}, "threads is 'x'; give a whole number"),
        ({"threads": None}, "threads is None; give a whole number"),
        ({"ctx_size": 1.5}, "ctx_size is 1.5; give a whole number"),
        ({"budget": "much"}, "budget is 'much'; give a number"),
        ({"ram": None}, "ram is None; give bytes"),
    ],
)
def test_settings_that_are_no_numbers_are_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(**given)


def test_numbers_of_other_libraries_are_numbers(session: Session) -> None:
    numbers = {"max_new_tokens": np.int64(2), "temperature": Fraction(1, 2)}
    assert session.generate("x", **numbers)
    assert load(ram=np.int64(8 << 30)).config.ram == 8 << 30


def test_stopping_keeps_the_part_of_the_answer(session: Session) -> None:
    pieces = []
    for event in session.ask("x", greedy(session, max_new_tokens=200, ignore_eos=True)):
        if isinstance(event, Piece):
            pieces.append(event.text)
            if len(pieces) == 3:
                session.stop()
    assert isinstance(event, Reply)
    assert event.stop_reason == "interrupted"
    assert event.text == "".join(pieces)
    assert [m.role for m in session._conversation.messages] == ["user", "assistant"]
    assert reply(session.ask("y", SHORT)).prefill_tokens < 40


def test_stopping_while_reading_forgets_the_question(session: Session, book: Path) -> None:
    session._conversation = session._conversation.__class__((read_document(book),))
    events = session.ask("x", SHORT)
    assert isinstance(next(events), Progress)
    session.stop()
    with pytest.raises(Interrupted):
        list(events)
    assert session._conversation.messages == ()
    resumed = reply(session.ask("y", greedy(session, max_new_tokens=6)))
    assert 0 < resumed.prefill_tokens < resumed.prompt_tokens
    fresh = reply(session.stream("y", [book], options=greedy(session, max_new_tokens=6)))
    assert resumed.text == fresh.text


def test_documents_are_read_ahead_and_a_stopped_reading_goes_on(
    session: Session, book: Path
) -> None:
    session.set_documents([read_document(book)])
    assert session.statistics() is None
    events = session.read_documents()
    first = next(events)
    assert (first.stage, first.done) == ("prefill", 64)
    session.stop()
    with pytest.raises(Interrupted):
        list(events)
    [*_, last] = session.read_documents()
    assert last.done == last.total < 3000
    held = session.statistics()
    assert held is not None
    assert held.tokens == last.total + 64
    asked = reply(session.ask("y", greedy(session, max_new_tokens=6)))
    assert asked.prefill_tokens < 30
    assert list(session.read_documents()) == []
    fresh = reply(session.stream("y", [book], options=greedy(session, max_new_tokens=6)))
    assert asked.text == fresh.text


@pytest.mark.parametrize("cache", ["dense", "wave"])
def test_the_last_question_asked_again_or_edited_reads_itself_only(
    tiny_model: Path, book: Path, cache: str
) -> None:
    small = WaveConfig(segment_tokens=256, growth_tokens=64)
    config = SessionConfig(cache=cache, wave=small)  # type: ignore[arg-type]
    session = Session.open(str(tiny_model), config, documents=[read_document(book)])
    options = greedy(session, max_new_tokens=120, ignore_eos=True)
    turns = [reply(session.ask(question, options)).text for question in ("one", "two", "three")]
    session.set_messages(session.messages[:-2])
    again = reply(session.ask("three", options))
    assert (again.text, again.prefill_tokens) == (turns[2], 0)
    session.set_messages(session.messages[:-2])
    edited = reply(session.ask("four", options))
    assert edited.prefill_tokens < 30
    fresh = Session.open(str(tiny_model), config, documents=[read_document(book)])
    for question in ("one", "two"):
        reply(fresh.ask(question, options))
    assert reply(fresh.ask("four", options)).text == edited.text


def test_a_conversation_is_taken_up_again(session: Session, tiny_model: Path) -> None:
    options = greedy(session, max_new_tokens=15)
    reply(session.ask("one", options))
    expected = session.messages
    second = reply(session.ask("two", options)).text
    other = load(str(tiny_model))
    other.set_messages(expected)
    assert reply(other.ask("two", options)).text == second


def test_leaving_an_answer_in_the_middle_drops_it(session: Session) -> None:
    options = greedy(session, max_new_tokens=10)
    expected = reply(session.stream("b", options=options)).text
    events = session.stream("a", options=options)
    for event in events:
        if isinstance(event, Piece):
            break
    events.close()  # type: ignore[attr-defined]
    assert reply(session.stream("b", options=options)).text == expected


def test_stop_strings_are_not_part_of_the_answer(session: Session) -> None:
    whole = reply(session.stream("q", options=greedy(session, max_new_tokens=40, ignore_eos=True)))
    stop = whole.text[5:8]
    cut = reply(
        session.stream(
            "q", options=greedy(session, max_new_tokens=40, ignore_eos=True, stop=[stop])
        )
    )
    assert cut.stop_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_ignore_eos_and_length(session: Session) -> None:
    last = reply(session.stream("q", options=greedy(session, max_new_tokens=300, ignore_eos=True)))
    assert last.stop_reason == "length"
    assert last.generated_tokens == 300
    assert last.cache.tokens == last.prompt_tokens + 299


def test_a_document_too_long_is_refused_with_both_numbers(
    tiny_model: Path, tmp_path: Path, session: Session
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("x" * 5000)
    with pytest.raises(ContextError, match=r"5,\d\d\d tokens .* 4,096"):
        session.generate("q", [path])
    with pytest.raises(ContextError, match=r"needs .* --ctx-size is 100"):
        load(str(tiny_model), ctx_size=100).generate("z" * 200)


def test_a_missing_file_changes_nothing(session: Session, book: Path) -> None:
    options = greedy(session, max_new_tokens=5)
    first = reply(session.stream("q", [book], options=options))
    with pytest.raises(DocumentError, match=r"nowhere\.txt"):
        session.generate("q", ["nowhere.txt"])
    assert reply(session.stream("q", [book], options=options)).text == first.text


def test_memory_is_checked_before_loading(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryLimitError, match=r"needs about .* are free"):
        load(str(tiny_model))


def test_a_closed_session_says_so(session: Session) -> None:
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.generate("q")


def test_sampling_is_reproducible_with_a_seed(session: Session) -> None:
    sampling = session.sampling(temperature=1.0, seed=7)
    texts = [
        session.generate("q", options=AskOptions(max_new_tokens=30, sampling=sampling))
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


def test_a_model_without_template_continues_the_text(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    session = load(str(folder))
    last = reply(session.ask("abc", greedy(session, max_new_tokens=5)))
    assert last.prompt_tokens == 3


def test_settings_are_checked(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="--cache"):
        load(str(tiny_model), cache="fast")
    with pytest.raises(UsageError, match="--dtype"):
        load(str(tiny_model), dtype="int3")
    with pytest.raises(ModelError):
        load("/nowhere/at/all")
    assert load(str(tiny_model), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert retrolocal.load is load


@pytest.mark.filterwarnings("ignore")
def test_a_trained_model_writes_what_transformers_writes(material: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = material / "checkpoints" / "tinystories-656K"
    session = load(str(folder))
    ids = session.tokenizer.encode("Once upon a time")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answer = model.generate(torch.tensor([ids]), max_new_tokens=150, do_sample=False)[0]
    expected = session.tokenizer.decode(answer[len(ids) :].tolist(), continuing=True)
    assert session.generate("Once upon a time", max_new_tokens=150, temperature=0) == expected
    assert "girl named Lily" in expected
