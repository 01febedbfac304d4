"""A text is read once: found again, continued, grown; never taken for another."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retrolocal import kept
from retrolocal.caches import layer_caches
from retrolocal.config import SamplingConfig, SessionConfig, WaveConfig
from retrolocal.crossover import Crossover
from retrolocal.errors import DamagedError, IdentityError, LibraryError, SpaceError
from retrolocal.hub import resolve_model
from retrolocal.ingest import Document
from retrolocal.library import Entry, Library
from retrolocal.library.filesystem import DiskFileSystem
from retrolocal.models.config import read_config
from retrolocal.session import AskOptions, Reply, Session
from retrolocal.shelf import Keeping, corpus_documents, document_of

WAVE = WaveConfig(segment_tokens=256, growth_tokens=64, sink_tokens=4, window_tokens=16, least=64)
CONFIG = SessionConfig(cache="wave", batch_size=100, wave=WAVE)
DENSE, AUTO = replace(CONFIG, cache="dense"), replace(CONFIG, cache="auto")
OPTIONS = AskOptions(sampling=SamplingConfig(temperature=0.0), max_new_tokens=12)
WORDS = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return write(tmp_path, "book.txt", 1)


@pytest.fixture(autouse=True)
def pays_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """From how many segments on the index pays; never, before it is told."""

    def pay(segments: int | None) -> None:
        measured = Crossover(decode=segments, prefill=None)
        monkeypatch.setattr("retrolocal.caches.crossover", lambda shape, config: measured)

    pay(None)
    return pay


def write(folder: Path, name: str, seed: int) -> Path:
    path = folder / name
    path.write_text(" ".join(random.Random(seed).choices(WORDS, k=700)), encoding="utf-8")
    return path


def ask(
    documents: list[Document],
    library: Library | None,
    config: SessionConfig = CONFIG,
    **keeping: object,
) -> Reply:
    kept = None if library is None else Keeping(library=library, **keeping)  # type: ignore[arg-type]
    with Session.open("builtin", config, documents=documents, keeping=kept) as session:
        question = documents[0].text[200:260]
        *_, reply = session.ask(question, OPTIONS)
    assert isinstance(reply, Reply)
    return reply


def files(library: Library) -> dict[str, bytes]:
    """What was computed: segments, tails, page maps, texts; manifests tell the time."""
    kept = (path for path in library.path.rglob("*") if path.is_file())
    return {
        str(path.relative_to(library.path)): path.read_bytes()
        for path in kept
        if path.parent.name in ("segments", "tails", "objects")
    }


def test_a_text_is_read_once(library: Library, book: Path) -> None:
    plain = ask([document_of(book)], None)
    first = ask([document_of(book, library=library)], library)
    kept = files(library)
    second = ask([document_of(book, library=library)], library)
    assert first.prefill_tokens == plain.prefill_tokens > 1000
    assert second.prefill_tokens == first.prefill_tokens - library.find("book.txt").tokens
    assert second.prompt_tokens == first.prompt_tokens
    assert second.cache.clusters == first.cache.clusters > 0
    assert first.text == second.text == plain.text
    assert files(library) == kept


def read_pieces(
    documents: list[Document], library: Library, pieces: int, config: SessionConfig = CONFIG
) -> None:
    """A reading that is interrupted behind so many."""
    keeping = Keeping(library=library, required=True)
    with Session.open("builtin", config, documents=documents, keeping=keeping) as session:
        for progress in session.read_documents():
            if progress.done >= 20 + 256 * pieces:
                break


@pytest.mark.parametrize(
    ("config", "pieces"), [(CONFIG, 1), (CONFIG, 2), (CONFIG, 3), (DENSE, 1), (DENSE, 3), (AUTO, 2)]
)
def test_an_interrupted_reading_goes_on_to_the_same_bytes(
    tmp_path: Path, book: Path, config: SessionConfig, pieces: int
) -> None:
    whole, parts = Library(tmp_path / "whole"), Library(tmp_path / "parts")
    document = document_of(book)
    expected = ask([document], whole, config)
    assert (expected.cache.clusters > 0) == (config is CONFIG)
    read_pieces([document], parts, pieces, config)
    assert parts.find("book.txt").state == "running"
    assert len(parts.find("book.txt").segments) == pieces
    found = ask([document], parts, config)
    assert found.prefill_tokens == expected.prefill_tokens - 20 - 256 * pieces
    assert found.text == expected.text
    assert files(parts) == files(whole)
    assert parts.verify("book.txt", deep=True).problems == ()


def test_what_came_from_standard_input_is_called_like_its_file(
    library: Library, tmp_path: Path
) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Ten green bottles hang on the wall. " * 8, encoding="utf-8")
    document = document_of(path)
    first = ask([replace(document, name="stdin")], library)
    assert library.find("stdin").tokens > 0
    assert ask([document], library).prefill_tokens < first.prefill_tokens
    assert [manifest.name for manifest in library.catalogue().manifests] == ["short.txt"]
    other = replace(document, name="other.txt")
    assert ask([other], library).prefill_tokens < first.prefill_tokens
    assert ask([replace(document, name="stdin")], library).prefill_tokens < first.prefill_tokens
    assert [manifest.name for manifest in library.catalogue().manifests] == ["short.txt"]


@pytest.mark.parametrize(("given", "name"), [("novel.txt", "novel.txt"), ("stdin", "book.txt")])
def test_a_file_of_a_corpus_is_not_called_like_a_document_of_the_same_text(
    library: Library, book: Path, given: str, name: str
) -> None:
    """What came from standard input has no name of its own."""
    document = document_of(book)
    ask([document], library)
    ask([replace(document, name=given)], library, corpus="notes")
    assert [stored.name for stored in library.find("notes").documents] == [name]


@pytest.mark.parametrize("name", ["stdin", "copy.txt"])
def test_an_unfinished_text_keeps_its_name(library: Library, book: Path, name: str) -> None:
    document = document_of(book)
    read_pieces([replace(document, name="stdin")], library, 1)
    read_pieces([document], library, 2)
    read_pieces([replace(document, name=name)], library, 3)
    assert [manifest.name for manifest in library.catalogue().manifests] == ["book.txt"]
    ask([replace(document, name=name)], library)
    assert [manifest.name for manifest in library.catalogue().manifests] == ["book.txt"]


@pytest.mark.parametrize("config", [CONFIG, DENSE, AUTO])
def test_a_corpus_grows_at_its_end(tmp_path: Path, book: Path, config: SessionConfig) -> None:
    more = write(tmp_path, "more.txt", 2)
    grown, fresh = Library(tmp_path / "grown"), Library(tmp_path / "fresh")
    both = [document_of(book), document_of(more)]
    ask(both[:1], grown, config, corpus="shelf")
    segments = len(grown.find("shelf").segments)
    assert [d.text for d in corpus_documents(grown, "shelf")] == [both[0].text]
    found = ask(corpus_documents(grown, "shelf") + both[1:], grown, config, corpus="shelf")
    expected = ask(both, fresh, config, corpus="shelf")
    assert segments > 2
    assert expected.prefill_tokens - found.prefill_tokens == 20 + 256 * segments - 0
    assert found.text == expected.text
    grown.collect()
    assert files(grown) == files(fresh)


def test_a_corpus_that_grows_long_enough_for_the_index_is_read_anew(
    library: Library, tmp_path: Path, book: Path, pays_from: Callable[[int | None], None]
) -> None:
    both, remarks = [document_of(book), document_of(write(tmp_path, "more.txt", 2))], list[str]()
    first = ask(both[:1], library, AUTO, corpus="shelf")
    pays_from(len(library.find("shelf").segments) + 1)
    assert ask(both[:1], library, AUTO, corpus="shelf").prefill_tokens < first.prefill_tokens
    grown = ask(both, library, AUTO, corpus="shelf", tell=remarks.append)
    assert remarks == ["the corpus is now long enough for the index: it is read anew"]
    assert (first.cache.clusters, grown.cache.clusters > 0) == (0, True)
    assert grown.prefill_tokens == grown.prompt_tokens
    assert len(library.find("shelf").segments) > 4


def test_pieces_are_taken_up_only_as_they_were_read(
    tmp_path: Path, book: Path, pays_from: Callable[[int | None], None]
) -> None:
    """Of one text, read with the index and without it."""
    library, documents = Library(tmp_path / "library"), [document_of(book)]
    read_pieces(documents, library, 2, AUTO)
    unclustered = library.find("book.txt")
    pays_from(1)
    other = Library(tmp_path / "other")
    expected, found = (ask(documents, place, AUTO) for place in (other, library))
    assert found.cache.clusters == expected.cache.clusters > 0
    assert found.prefill_tokens == expected.prefill_tokens == expected.prompt_tokens
    with library.open("book.txt") as entry:
        keys = {segment.key for segment in entry.segments()}
    assert keys.isdisjoint(segment.key for segment in unclustered.segments)
    with pytest.raises(LibraryError, match=r"unfinished, cache dense\).*|complete, cache wave\)"):
        library.find("book.txt")
    assert files(other).items() <= files(library).items()


def test_a_text_that_was_read_without_the_index_is_found_whatever_pays_today(
    library: Library, book: Path, pays_from: Callable[[int | None], None]
) -> None:
    documents = [document_of(book)]
    first = ask(documents, library, AUTO)
    assert len(library.find("book.txt").segments) > 3
    pays_from(1)
    for config in (AUTO, replace(AUTO, prefill="dense"), CONFIG):
        assert ask(documents, library, config).prefill_tokens < first.prefill_tokens
    assert len(library.catalogue().manifests) == 1


@pytest.mark.parametrize("config", [DENSE, AUTO])
def test_a_text_that_was_kept_as_one_tail_opens(
    tmp_path: Path, book: Path, config: SessionConfig
) -> None:
    """As texts that are not clustered once were."""
    pieces, whole = Library(tmp_path / "pieces"), Library(tmp_path / "whole")
    documents = [document_of(book)]
    first = ask(documents, pieces, config)
    text = pieces.find_text(documents[0].digest, documents[0].extractor)
    assert text is not None
    with pieces.open("book.txt") as entry:
        parts = (*entry.segments(), entry.tail)
        model = read_config(resolve_model("builtin"))
        caches = layer_caches(model, config, torch.float32, torch.device("cpu"))
        kept.load(caches, parts, entry.tokens)
        ids = torch.cat([part.token_ids() for part in parts])
        identity = replace(entry.identity, prefill={"kind": "dense"})
        with whole.write(identity, [text]) as writer:
            writer.finish(ids.numpy(), kept.tail_tensors(caches, 0), bytes(entry.page_map))
    assert whole.find("book.txt").segments == ()
    for opening in (config, replace(config, prefill="dense")):
        found = ask(documents, whole, opening)
        assert found.prefill_tokens < 100 < first.prefill_tokens
        assert found.text == first.text
    grown = ask([*documents, document_of(write(tmp_path, "more.txt", 2))], whole, config)
    assert grown.prefill_tokens > 1000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (replace(CONFIG, wave=replace(WAVE, index_type="f32")), "codec.index"),
        (replace(CONFIG, wave=replace(WAVE, segment_tokens=128)), "clustering.segment_tokens"),
        (replace(CONFIG, dtype="float32"), "dtype"),
        (DENSE, "clustering"),
    ],
    ids=["index", "segment", "dtype", "dense"],
)
def test_another_setting_is_another_text(
    library: Library, book: Path, change: SessionConfig, field: str
) -> None:
    documents = [document_of(book)]
    first = ask(documents, library)
    assert ask(documents, library, change).prefill_tokens == first.prefill_tokens
    ask(documents, library, corpus="shelf")
    with pytest.raises(IdentityError, match=field.replace(".", r"\.")):
        ask(documents, library, change, corpus="shelf")


def test_settings_of_a_query_do_not_matter(library: Library, book: Path) -> None:
    documents = [document_of(book)]
    first = ask(documents, library)
    other = replace(CONFIG, batch_size=64, wave=replace(WAVE, budget=0.5))
    assert ask(documents, library, other).prefill_tokens < first.prefill_tokens


def test_a_short_text_stays_dense_and_is_kept(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Ten green bottles hang on the wall. " * 8, encoding="utf-8")
    documents = [document_of(path)]
    first, second = (ask(documents, library) for _ in range(2))
    assert second.prefill_tokens < first.prefill_tokens
    assert second.text == first.text
    assert library.find("short.txt").segments == ()


AS_THE_PROGRAM = SessionConfig(cache="wave", wave=WaveConfig(store_type="int8"))


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (150, replace(AS_THE_PROGRAM, cache="auto")),
        (300, DENSE),
        (300, CONFIG),
        (300, replace(CONFIG, wave=replace(WAVE, store_type="int4", index_type="f32"))),
        (2500, AS_THE_PROGRAM),
    ],
    ids=["short", "dense", "segments", "int4", "longer"],
)
def test_what_a_text_takes_on_the_disk_is_known_before(
    library: Library, tmp_path: Path, words: int, config: SessionConfig
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(random.Random(1).choices(WORDS, k=words)), encoding="utf-8")
    keeping = Keeping(library=library, required=True)
    with Session.open("builtin", config, documents=[document_of(path)], keeping=keeping) as session:
        expected = session.documents_estimate()
        for _ in session.read_documents():
            pass
    written = sum(file.stat().st_size for file in library.path.rglob("*") if file.is_file())
    assert expected.disk == pytest.approx(written, rel=0.15)
    assert (expected.kept, library.find("text.txt").tokens) == (0, expected.tokens)


@pytest.mark.parametrize("config", [CONFIG, DENSE, AUTO])
def test_of_an_interrupted_reading_the_rest_is_still_to_be_written(
    library: Library, book: Path, config: SessionConfig
) -> None:
    keeping = Keeping(library=library, required=True)
    documents = [document_of(book)]
    with Session.open("builtin", config, documents=documents, keeping=keeping) as session:
        whole = session.documents_estimate()
        for progress in session.read_documents():
            if progress.done >= 20 + 256 * 2:
                break
    before = library.find("book.txt").bytes
    with Session.open("builtin", config, documents=documents, keeping=keeping) as session:
        left = session.documents_estimate()
        for _ in session.read_documents():
            pass
        assert (whole.kept, left.kept) == (0, 20 + 256 * 2)
        after = library.find("book.txt").bytes
        assert whole.disk > left.disk == pytest.approx(after - before, rel=0.15)
    with Session.open("builtin", config, documents=documents, keeping=keeping) as session:
        assert session.documents_estimate().disk == 0
        assert session.documents_estimate().kept == whole.tokens


def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path: Path, book: Path) -> None:
    class Full(DiskFileSystem):
        def free_bytes(self) -> int:
            return expected.disk - 1

    keeping = Keeping(library=Library(filesystem=Full(tmp_path / "full")), required=True)
    documents = [document_of(book)]
    with Session.open("builtin", DENSE, documents=documents, keeping=keeping) as session:
        expected = session.documents_estimate()
        with pytest.raises(SpaceError, match=r"book\.txt needs .* are free"):
            next(session.read_documents())


def test_what_cannot_be_kept_is_read_all_the_same(
    library: Library, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise SpaceError("the disk is full")

    remarks: list[str] = []
    documents = [document_of(book)]
    monkeypatch.setattr(Library, "write", full)
    expected = ask(documents, None)
    assert ask(documents, library, tell=remarks.append).text == expected.text
    assert remarks == ["not kept in the library: the disk is full"]
    with pytest.raises(LibraryError, match="the disk is full"):
        ask(documents, library, required=True)


@pytest.mark.parametrize("place", ["header", "index", "blocks"])
def test_a_damaged_entry_is_read_again(library: Library, book: Path, place: str) -> None:
    documents, remarks = [document_of(book)], list[str]()
    first = ask(documents, library)
    name = damage(library, place)
    again = ask(documents, library, tell=remarks.append)
    assert name in " ".join(remarks)
    assert again.text == first.text
    assert again.prefill_tokens > 256
    assert library.verify("book.txt", deep=True).problems == ()


@pytest.mark.parametrize("error", [DamagedError, LibraryError])
def test_an_entry_that_cannot_be_read_is_closed(
    library: Library, book: Path, error: type[LibraryError], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask([document_of(book)], library)
    closed, close = list[str](), Entry.close

    def unreadable(entry: Entry, number: int) -> None:
        raise error("the disk says no")

    def closing(entry: Entry) -> None:
        closed.append(entry.name)
        close(entry)

    monkeypatch.setattr(Entry, "text", unreadable)
    monkeypatch.setattr(Entry, "close", closing)
    ask([document_of(book)], library, checked=True)
    assert closed == ["book.txt"]


def damage(library: Library, place: str) -> str:
    """Changes a byte of the second segment; returns the file's name."""
    file = library.find("book.txt").segments[1]
    [path] = library.path.rglob(f"{file.key}*")
    content = bytearray(path.read_bytes())
    with library.open("book.txt") as entry:
        layout = {spec.name: spec for spec in entry.segments()[1].layout}
    names = {"index": "4.segment.0.fine.centroids", "blocks": "4.segment.0.blocks"}
    data = len(content) - max(spec.start + spec.bytes for spec in layout.values())
    at = 40 if place == "header" else data + layout[names[place]].start + 5
    content[at] ^= 1
    path.write_bytes(content)
    return path.name


def test_a_library_that_cannot_be_used_stops_no_chat(tmp_path: Path, book: Path) -> None:
    place = tmp_path / "no-folder"
    place.write_text("a file stands here", encoding="utf-8")
    remarks: list[str] = []
    documents = [document_of(book, library=Library(place))]
    expected = ask(documents, None)
    assert ask(documents, Library(place), tell=remarks.append).text == expected.text
    assert remarks
    with pytest.raises(LibraryError):
        ask(documents, Library(place), required=True)
