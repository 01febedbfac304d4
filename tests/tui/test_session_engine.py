"""The real engine behind the protocol, with a tiny random model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from fake_hub import Fault, own_cache, point_at, serving

from retrolocal import shelf
from retrolocal.config import SessionConfig, WaveConfig
from retrolocal.errors import (
    ContextError,
    DocumentError,
    Interrupted,
    LibraryError,
    ModelError,
    UsageError,
)
from retrolocal.ingest import Options
from retrolocal.kernels import compiled
from retrolocal.library import Library, segment, tensor_file
from retrolocal.room import COMPILING
from retrolocal.session import Session
from retrolocal.shelf import Keeping, document_of
from retrolocal.tui.engine import (
    Advanced,
    Began,
    DocumentsRead,
    Engine,
    Event,
    Measured,
    NeedsDownload,
    Remarked,
    Turn,
    Wrote,
)
from retrolocal.tui.session_engine import EngineSettings, SessionEngine


@dataclass
class Listener:
    events: list[Event] = field(default_factory=list)
    stopped: bool = False
    stop_after: int = 10**9
    """Pieces of text after which it is stopped."""

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.stopped = self.stopped or len(self.of(Wrote)) >= self.stop_after

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def settings(tiny_model: Path) -> EngineSettings:
    return EngineSettings(
        model=str(tiny_model),
        config=SessionConfig(batch_size=64),
        extraction=Options,
        sampling={"temperature": 0.0},
        max_new_tokens=20,
        ignore_eos=True,
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} tells of {i * i % 97} ships. " for i in range(30)))
    return path


def opened(settings: EngineSettings) -> SessionEngine:
    engine = SessionEngine(settings)
    engine.open(Listener(), download=False)
    return engine


def test_opening_and_reading_say_what_they_do(settings: EngineSettings, book: Path) -> None:
    engine: Engine = SessionEngine(replace(settings, files=(str(book),)))
    listener = Listener()
    model = engine.open(listener, download=False)
    assert model.max_tokens == 4096
    began = [event.stage for event in listener.events if isinstance(event, Began)]
    assert began == ["reading", "looking", "loading"]
    [read] = listener.of(DocumentsRead)
    assert isinstance(read, DocumentsRead)
    assert (read.documents[0].name, read.documents[0].path) == ("book.txt", str(book))
    listener = Listener()
    engine.read_documents(listener)
    advanced = [event for event in listener.events if isinstance(event, Advanced)]
    assert [one.work for one in advanced] == ["prefilling"] * len(advanced)
    assert len(advanced) > 3
    assert advanced[-1].done == advanced[-1].total
    measured = listener.of(Measured)[-1]
    assert isinstance(measured, Measured)
    assert measured.cache is not None
    assert measured.cache.tokens == advanced[-1].total
    assert [meter.name for meter in measured.memory][-1] == "RAM"


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_cannot_be_read_is_left_out(
    settings: EngineSettings, book: Path, tmp_path: Path, there: bool
) -> None:
    bad = tmp_path / "empty.txt"
    if there:
        bad.write_text("")
    engine, control = SessionEngine(replace(settings, files=(str(book), str(bad)))), Listener()
    with pytest.raises(DocumentError, match=r"empty\.txt"):
        engine.open(control, download=False)
    reading = [e.about for e in control.events if isinstance(e, Began) and e.stage == "reading"]
    assert reading == [str(book), str(bad)]
    told = control.events[-1]
    assert isinstance(told, DocumentsRead)
    assert [document.path for document in told.documents] == [str(book)]
    control = Listener()
    engine.choose_files([str(book)])
    engine.open(control, download=False)
    assert not control.of(Remarked)
    [told] = control.of(DocumentsRead)
    assert isinstance(told, DocumentsRead)
    assert [document.path for document in told.documents] == [str(book)]
    engine.read_documents(control)
    engine.close()


def test_what_cannot_be_kept_is_remarked(
    settings: EngineSettings, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = tmp_path / "library"
    others.mkdir(mode=0o777)
    others.chmod(0o777)
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(others))
    engine, control = SessionEngine(replace(settings, files=(str(book),))), Listener()
    engine.open(control, download=False)
    engine.read_documents(control)
    [remark] = control.of(Remarked)
    assert isinstance(remark, Remarked)
    assert remark.text.startswith("not kept in the library: ")
    engine.close()


def test_damage_is_mended_in_the_middle_of_a_chat(
    settings: EngineSettings, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is that of an undamaged text, told once, and the screen is told why it took."""
    for module in (tensor_file, segment):
        monkeypatch.setattr(module, "CHUNK", 4096)
    wave = WaveConfig(
        segment_tokens=256, growth_tokens=64, sink_tokens=4, window_tokens=16, budget=1.0
    )
    config = SessionConfig(cache="wave", batch_size=64, wave=wave)
    settings = replace(settings, config=config, files=(str(book),))
    engine = opened(settings)
    engine.read_documents(Listener())
    expected = engine.ask("How many?", Listener())
    engine.close()
    with Library().open("book.txt") as entry:
        first = entry.segments()[0]
        name = next(name for name in first.names if name.endswith(".blocks"))
        path, start, size = first.location(name)
    content = bytearray(path.read_bytes())
    content[start + size // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(shelf, "CHECKED_WHOLE", 1000)
    engine, listener = opened(settings), Listener()
    engine.read_documents(Listener())
    answer = engine.ask("How many?", listener)
    engine.close()
    assert answer.text == expected.text == "".join(wrote.text for wrote in listener.of(Wrote))
    [remark] = listener.of(Remarked)
    assert f"{path.name} is damaged" in remark.text


def test_an_answer_is_told_piece_by_piece(settings: EngineSettings) -> None:
    engine = opened(settings)
    listener = Listener()
    answer = engine.ask("hello", listener)
    text = "".join(event.text for event in listener.events if isinstance(event, Wrote))
    assert text == answer.text
    assert (answer.stop_reason, answer.generated_tokens) == ("length", 20)
    assert listener.of(Measured)


def test_turns_are_set_and_go_on(settings: EngineSettings) -> None:
    engine = opened(settings)
    first = engine.ask("one", Listener())
    second = engine.ask("two", Listener())
    engine.set_turns([Turn("one", first.text)])
    again = engine.ask("two", Listener())
    assert (again.text, again.prefill_tokens) == (second.text, 0)
    other = opened(settings)
    other.set_turns([Turn("one", first.text)])
    assert other.ask("two", Listener()).text == second.text


def test_a_stop_that_came_too_early_is_not_forgotten(settings: EngineSettings, book: Path) -> None:
    engine = opened(settings)
    listener = Listener(stop_after=3)
    answer = engine.ask("x", listener)
    assert answer.stop_reason == "interrupted"
    assert answer.generated_tokens < 8
    engine.set_documents([], Listener())
    with pytest.raises(Interrupted):
        engine.set_documents([str(book)], Listener(stopped=True))
    engine.read_documents(Listener())
    assert engine.ask("y", Listener()).prompt_tokens > 600


def test_documents_are_exchanged_and_wrong_ones_change_nothing(
    settings: EngineSettings, book: Path, tmp_path: Path
) -> None:
    engine = opened(replace(settings, files=(str(book),)))
    engine.read_documents(Listener())
    with pytest.raises(DocumentError):
        engine.set_documents([str(tmp_path / "nowhere.txt")], Listener())
    long = tmp_path / "long.txt"
    long.write_text("x" * 9000)
    listener = Listener()
    with pytest.raises(ContextError):
        engine.set_documents([str(book), str(long)], listener)
    told = listener.of(DocumentsRead)[-1]
    assert isinstance(told, DocumentsRead)
    assert [document.name for document in told.documents] == ["book.txt"]
    asked = engine.ask("y", Listener())
    assert asked.prompt_tokens > 600
    assert asked.prefill_tokens < 40
    engine.set_documents([], Listener())
    assert engine.ask("y", Listener()).prompt_tokens < 200


def test_a_chat_that_was_kept_is_taken_up_without_reading(
    settings: EngineSettings, book: Path, tmp_path: Path
) -> None:
    chat = tmp_path / "chat.safetensors"
    engine = opened(replace(settings, files=(str(book),)))
    engine.read_documents(Listener())
    assert not engine.keep(chat)
    first = engine.ask("one", Listener())
    assert engine.keep(chat)
    expected = engine.ask("two", Listener())
    engine.set_turns(())
    engine.ask("something else", Listener())
    engine.set_turns([Turn("one", first.text)])
    assert engine.reopen(chat)
    again = engine.ask("two", Listener())
    assert (again.text, again.prefill_tokens) == (expected.text, expected.prefill_tokens)
    engine.close()
    engine = opened(replace(settings, files=(str(book),)))
    engine.read_documents(Listener())
    engine.set_turns([Turn("one", first.text)])
    assert engine.reopen(chat)
    again = engine.ask("two", Listener())
    assert (again.text, again.prefill_tokens) == (expected.text, expected.prefill_tokens)
    engine.close()
    without = opened(replace(settings, store=False))
    without.ask("one", Listener())
    assert not without.keep(tmp_path / "none.safetensors")
    without.close()


def test_a_reading_that_was_paused_counts_on(settings: EngineSettings, book: Path) -> None:
    engine = opened(replace(settings, files=(str(book),)))
    first, second = Listener(stopped=True), Listener()
    with pytest.raises(Interrupted):
        engine.read_documents(first)
    engine.read_documents(second)
    engine.close()
    before, after = first.of(Advanced)[-1], second.of(Advanced)
    assert isinstance(before, Advanced)
    assert 0 < before.done < before.total
    assert after[0] == before
    assert after[-1] == replace(before, done=before.total)


def test_the_figures_are_those_of_the_conversation_that_is_open(
    settings: EngineSettings, book: Path, tmp_path: Path
) -> None:
    chat = tmp_path / "chat.safetensors"
    engine = opened(replace(settings, files=(str(book),)))
    engine.read_documents(Listener())
    document = held(engine)
    first = engine.ask("one", Listener())
    assert engine.keep(chat)
    whole = held(engine)
    assert whole > document
    engine.set_turns(())
    engine.forget()
    assert held(engine) == document
    other = engine.ask("other", Listener())
    assert other.prefill_tokens < document
    engine.set_turns([Turn("one", first.text)])
    assert engine.reopen(chat)
    assert held(engine) == whole
    engine.set_turns(())
    engine.forget()
    assert held(engine) == 0
    again = engine.ask("one", Listener())
    assert (again.text, again.prefill_tokens) == (first.text, first.prefill_tokens)
    engine.close()


def held(engine: SessionEngine) -> int:
    """Tokens that the caches are said to hold."""
    listener = Listener()
    engine.measure(listener)
    [measured] = listener.of(Measured)
    assert isinstance(measured, Measured)
    return 0 if measured.cache is None else measured.cache.tokens


def test_answers_are_made_with_what_was_changed(settings: EngineSettings) -> None:
    drawn: dict[str, float] = {"temperature": 1.5, "seed": 5}
    other = replace(settings, sampling=drawn, max_new_tokens=5)
    expected = opened(other).ask("one", Listener())
    engine = SessionEngine(settings)
    told = engine.open(Listener(), download=False).answering
    assert (told["temperature"], told["top_k"], told["max_new_tokens"]) == (0.0, 40, 20)
    assert not engine.ask("one", Listener()).text.startswith(expected.text)
    engine.change({**drawn, "max_new_tokens": 5})
    engine.set_turns(())
    answer = engine.ask("one", Listener())
    assert (answer.generated_tokens, answer.text) == (5, expected.text)


def test_what_is_compiled_once_is_announced(
    settings: EngineSettings, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("kernels.compiled", "room"):
        monkeypatch.setattr(f"retrolocal.{module}.to_compile", lambda cache: True)
    wave = WaveConfig(segment_tokens=256, growth_tokens=64, window_tokens=16, least=64)
    config = SessionConfig(cache="wave", wave=wave, batch_size=64)
    engine = SessionEngine(replace(settings, config=config, files=(str(book),)))
    assert engine.open(Listener(), download=False).notes == (COMPILING,)
    engine.read_documents(Listener())
    stages = []
    for question in ("one", "two"):
        listener = Listener()
        engine.ask(question, listener)
        stages.append([one.stage for one in listener.events if isinstance(one, Began)])
    assert stages == [["compiling"], []]
    engine.close()
    without = SessionEngine(replace(settings, config=config))
    assert without.open(Listener(), download=False).notes == ()
    without.close()


def test_a_file_that_is_given_twice_is_read_once(settings: EngineSettings, book: Path) -> None:
    again = str(book.parent / ".." / book.parent.name / book.name)
    engine = SessionEngine(replace(settings, files=(str(book), again)))
    listener = Listener()
    engine.open(listener, download=False)
    engine.close()
    assert [event.text for event in listener.events if isinstance(event, Remarked)] == [
        f"{again} is given twice; it is read once"
    ]
    [read] = listener.of(DocumentsRead)
    assert isinstance(read, DocumentsRead)
    assert [document.path for document in read.documents] == [str(book)]


def test_compiled_code_that_cannot_be_kept_is_remarked_on(
    settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "UNKEPT", compiled.Unkept("/full (No space left on device)"))
    engine = opened(settings)
    remarks = []
    for _ in range(2):
        listener = Listener()
        engine.ask("one", listener)
        remarks += listener.of(Remarked)
    engine.close()
    [remark] = remarks
    assert isinstance(remark, Remarked)
    assert "/full (No space left on device)" in remark.text


def test_a_corpus_stays_as_it_is(settings: EngineSettings, book: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("More of it. " * 40)
    library = Library()
    keeping = Keeping(library=library, corpus="notes")
    documents = [document_of(book), document_of(more)]
    with Session.open(
        settings.model, settings.config, documents=documents, keeping=keeping
    ) as session:
        list(session.read_documents())
    before = library.find("notes")
    engine = SessionEngine(replace(settings, corpus="notes"))
    listener = Listener()
    engine.open(listener, download=False)
    [told] = listener.of(DocumentsRead)
    assert isinstance(told, DocumentsRead)
    assert [document.name for document in told.documents] == ["book.txt", "more.txt"]
    paths = [document.path for document in told.documents]
    assert paths == ["corpus:notes#0", "corpus:notes#1"]
    engine.read_documents(listener)
    assert not listener.of(Advanced)[-1:] or library.find("notes") == before
    extra = tmp_path / "extra.txt"
    extra.write_text("Extra. " * 20)
    engine.set_documents([*paths, str(extra)], Listener())
    assert engine.ask("x", Listener()).prompt_tokens > 1200
    assert library.find("notes") == before
    assert len(library.find("book.txt").documents) == 3
    engine.set_documents(paths[:1], Listener())
    assert library.find("notes") == before
    engine.close()
    other = opened(settings)
    other.set_documents(paths, Listener())
    assert other.ask("x", Listener()).prompt_tokens > 1200
    with pytest.raises(LibraryError, match="nowhere"):
        other.set_documents(["corpus:nowhere#0"], Listener())
    with pytest.raises(DocumentError, match="corpus notes"):
        other.set_documents(["corpus:notes#7"], Listener())
    other.close()


def test_what_cannot_be_opened_is_one_line(settings: EngineSettings, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        SessionEngine(replace(settings, model="/nowhere")).open(Listener(), download=False)
    with pytest.raises(DocumentError):
        SessionEngine(replace(settings, files=("/nowhere",))).open(Listener(), download=False)
    with pytest.raises(UsageError, match="no model is open"):
        SessionEngine(settings).ask("x", Listener())
    SessionEngine(settings).stop()
    SessionEngine(settings).close()


def test_a_model_that_is_not_here_is_asked_for_and_fetched(
    settings: EngineSettings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = own_cache(tmp_path, monkeypatch)
    with serving() as hub:
        point_at(hub.url, monkeypatch)
        files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
        files["model.safetensors"] += bytes(4_000_000)
        hub.repositories["org/model"] = files
        settings = replace(settings, model="org/model")
        engine = SessionEngine(settings)
        with pytest.raises(NeedsDownload) as needed:
            engine.open(Listener(), download=False)
        download = needed.value.download
        assert download.total_bytes == sum(map(len, files.values()))
        assert (download.model, download.folder) == ("org/model", cache)
        assert download.free_bytes > 0
        assert not hub.asked("resolve")
        with pytest.raises(Interrupted, match="what is complete is kept"):
            SessionEngine(settings).open(Listener(stopped=True), download=True)
        listener = Listener()
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        hub.faults.append(Fault("/cdn/", status=429, headers={"Retry-After": "7"}))
        hub.files["model.safetensors"] = (tiny_model / "model.safetensors").read_bytes()
        opened = engine.open(listener, download=True)
    assert opened.model == "org/model"
    stages = [event.stage for event in listener.events if isinstance(event, Began)]
    assert stages == ["looking", "downloading", "loading"]
    assert Remarked("the Hub answers 429; trying again in 8 s") in listener.events
    bytes_told = [event for event in listener.events if isinstance(event, Advanced)]
    downloaded = [event for event in bytes_told if event.work == "downloading"]
    assert downloaded[-1].done == downloaded[-1].total > 0
    again = Listener()
    SessionEngine(settings).open(again, download=False)
    assert "downloading" not in [event.stage for event in again.events if isinstance(event, Began)]


def test_without_a_choice_the_model_is_said(settings: EngineSettings) -> None:
    opened = SessionEngine(replace(settings, model=None)).open(Listener(), download=False)
    assert opened.model == "builtin"
    assert "no model was chosen: using the built-in one" in opened.notes[0]
