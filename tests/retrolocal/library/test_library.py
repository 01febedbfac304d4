"""Write, find, open, continue, grow, share, remove: what the rest of the program relies on."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
import torch

from retrolocal.errors import (
    DamagedError,
    IdentityError,
    LibraryError,
    LockedError,
    SpaceError,
    UsageError,
)
from retrolocal.library import FileId, Identity, Library


def test_what_is_written_is_read(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    key = book.ingest(library)
    with sample.find(library, book) as entry:
        assert entry.key == key
        assert (entry.name, entry.kind, entry.identity) == ("book.txt", "document", sample.IDENTITY)
        book.assert_is(entry)
    with library.open("book.txt") as entry:
        book.assert_is(entry)
    with library.open(key[:8]) as entry:
        book.assert_is(entry)


def test_other_readers_of_safetensors_read_it_too(library: Library, sample: ModuleType) -> None:
    book = sample.Book(bytes_per_token=5000)
    book.ingest(library)
    for number, file in enumerate(library.find("book.txt").segments):
        path = library.path / "segments" / f"{file.key}.safetensors"
        with safetensors.safe_open(path, "pt") as stored:
            assert stored.get_tensor("token_ids").tolist() == book.piece(number)
            for name, tensor in book.tensors(number).items():
                assert torch.equal(stored.get_tensor(name), tensor)


def test_large_tensors_lie_at_pages_and_all_at_64_bytes(
    library: Library, sample: ModuleType
) -> None:
    sample.Book(bytes_per_token=5000).ingest(library)
    with library.open("book.txt") as entry:
        for segment in entry.segments():
            address = {name: segment.tensor(name).data_ptr() for name in segment.names}
            assert address["layers.0.kv"] % 4096 == 0
            assert all(place % 64 == 0 for place in address.values())


def test_a_mapped_tensor_outlives_its_entry_and_never_changes_the_file(
    library: Library, sample: ModuleType
) -> None:
    book = sample.Book()
    book.ingest(library)
    before = sample.content(library.path)
    with library.open("book.txt") as entry:
        tensor = entry.segments()[0].tensor("layers.0.kv")
    del entry
    gc.collect()
    assert torch.equal(tensor, book.tensors(0)["layers.0.kv"])
    tensor.fill_(0)
    assert sample.content(library.path) == before


def test_an_interrupted_ingest_continues_at_its_last_segment(
    library: Library, root: Path, tmp_path: Path, sample: ModuleType
) -> None:
    book = sample.Book()
    assert book.ingest(library, until=2) is None
    with pytest.raises(LibraryError, match=r"'book.txt' is not finished \(80 tokens are saved\)"):
        library.open("book.txt")
    assert sample.find(library, book) is None
    with library.longest_prefix(sample.IDENTITY, book.ids) as prefix:
        assert prefix.tokens == 80
        assert prefix.damage == ()
        assert prefix.segments[1].facts == {"number": 1}
    written: list[int] = []
    book.ingest(library, saved=written.append)
    assert written == [120, 127]
    other = Library(tmp_path / "other", now=lambda: 1_700_000_000.0)
    book.ingest(other)
    assert sample.content(root) == sample.content(tmp_path / "other")


def test_starting_again_from_nothing_forgets_nothing(library: Library, sample: ModuleType) -> None:
    book = sample.Book(segments=4)
    book.ingest(library, until=3)
    with library.write(sample.IDENTITY, book.texts) as writer:
        writer.append_segment(book.piece(0), book.tensors(0))
    with library.longest_prefix(sample.IDENTITY, book.ids) as prefix:
        assert prefix.tokens == 120


def test_what_was_interrupted_keeps_its_text(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    book.ingest(library, until=1)
    assert library.find_text(book.texts[0].digest, "text 1") == book.texts[0]
    assert library.find_text(book.texts[0].digest, "text 2") is None


def test_a_corpus_that_grows_adds_only_what_is_new(library: Library, sample: ModuleType) -> None:
    book = sample.Book(corpus="shelf")
    first = book.ingest(library)
    longer = replace(
        book.longer(2), documents=(*book.texts, sample.document("second.txt", "more of it"))
    )
    written: list[int] = []
    with library.open("shelf") as old:
        assert longer.ingest(library, saved=written.append) == first
        assert written == [160, 200, 207]
        book.assert_is(old)
    with library.open("shelf") as new:
        longer.assert_is(new)


def test_what_only_the_old_version_needed_goes(library: Library, sample: ModuleType) -> None:
    book = sample.Book(corpus="shelf")
    book.ingest(library)
    with library.open("shelf") as old:
        book.longer(1).ingest(library)
        book.assert_is(old)
        assert len(list((library.path / "tails").iterdir())) == 2
    del old
    gc.collect()
    book.longer(2).ingest(library)
    [tail] = (library.path / "tails").iterdir()
    assert tail.stem == library.find("shelf").tail.key
    before = sample.content(library.path)
    assert library.collect().files == 0
    assert sample.content(library.path) == before


def test_the_old_corpus_stays_until_the_new_one_is_complete(
    library: Library, sample: ModuleType
) -> None:
    book = sample.Book(corpus="shelf")
    book.ingest(library)
    assert book.longer(2).ingest(library, until=4) is None
    with library.open("shelf") as entry:
        book.assert_is(entry)
    states = [manifest.state for manifest in library.catalogue().current]
    assert states == ["complete", "running"]


def test_texts_with_one_beginning_share_its_segments(library: Library, sample: ModuleType) -> None:
    short, long = sample.Book(name="a.txt"), sample.Book(name="b.txt", segments=5)
    short.ingest(library)
    written: list[int] = []
    long.ingest(library, saved=written.append)
    assert written == [160, 200, 207]
    assert len(list((library.path / "segments").iterdir())) == 5
    library.remove("a.txt")
    with library.open("b.txt") as entry:
        long.assert_is(entry)
    library.remove("b.txt")
    assert sample.content(library.path) == {}


def test_segments_of_any_length_are_found(library: Library, sample: ModuleType) -> None:
    ids = list(range(100))
    cuts = {"a": [10, 30, 45], "b": [10, 50, 90], "c": [20, 40]}
    for name, ends in cuts.items():
        with library.write(sample.IDENTITY, [sample.document(name, name)]) as writer:
            for start, end in zip([0, *ends], ends, strict=False):
                writer.append_segment(ids[start:end], {"x": torch.tensor(end)})
    for tokens, best in [(100, 90), (89, 50), (49, 45), (42, 40), (9, 0)]:
        for given in (ids[:tokens], np.array(ids[:tokens], dtype=np.int64)):
            with library.longest_prefix(sample.IDENTITY, given) as prefix:
                assert prefix.tokens == best
                assert [int(segment.tensor("x")) for segment in prefix.segments[-1:]] == (
                    [best] if best else []
                )


def test_another_text_or_setting_shares_nothing(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    book.ingest(library)
    with library.longest_prefix(sample.IDENTITY, [1, *book.ids]) as prefix:
        assert prefix.tokens == 0
    with library.longest_prefix(replace(sample.IDENTITY, dtype="bfloat16"), book.ids) as prefix:
        assert prefix.tokens == 0


CHANGES = {
    "weights.model.safetensors": {"weights": {"model.safetensors": "2" * 64}},
    "model.layers": {"model": {"layers": 3, "kv_heads": 1}},
    "rope.theta": {"rope": {"theta": 1e6, "scaling": None}},
    "rope.scaling": {"rope": {"theta": 10000.0, "scaling": {"factor": 4}}},
    "tokenizer": {"tokenizer": "3" * 64},
    "dtype": {"dtype": "bfloat16"},
    "clustering.cluster_tokens": {"clustering": {"segment_tokens": 40, "cluster_tokens": 8}},
    "codec": {"codec": "int4"},
    "numerics": {"numerics": 2},
    "prefill.kind": {"prefill": {"kind": "wave"}},
    "prefix": {"prefix": "<s>[user] today"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_identity_is_refused_by_the_name_of_the_field(
    library: Library, sample: ModuleType, field: str
) -> None:
    book = sample.Book(corpus="shelf")
    book.ingest(library)
    single = sample.Book()
    single.ingest(library)
    wanted = replace(sample.IDENTITY, **CHANGES[field])
    with pytest.raises(IdentityError) as caught:
        library.open("shelf", wanted)
    assert f"{field} (saved " in str(caught.value)
    assert str(caught.value).endswith(
        "; go back to those, or ingest its files with the new ones under another --corpus name, or "
        "under this one after: retrolocal library rm shelf"
    )
    assert "\n" not in str(caught.value)
    assert sample.find(library, single, wanted) is None
    files = [FileId(single.texts[0].digest, "text 1")]
    [[difference]] = library.mismatches(files, wanted)
    assert difference.field == field


def test_of_another_model_it_is_said_which(library: Library, sample: ModuleType) -> None:
    wanted = replace(
        sample.IDENTITY,
        weights={"model.safetensors": "2" * 64},
        tokenizer="3" * 64,
        dtype="float16",
    )
    sample.Book(corpus="shelf", facts={"model": "org/name"}).ingest(library)
    with pytest.raises(IdentityError) as caught:
        library.open("shelf", wanted)
    said = str(caught.value)
    assert said.startswith("'shelf' was read with another model, -m org/name: weights.model.safe")
    assert "dtype (saved float32, now float16); go back" in said
    assert "tokenizer" not in said
    quantised = replace(
        sample.IDENTITY,
        weights={"model.safetensors": "0" * 64, "quant": "int8"},
        rope=sample.IDENTITY.rope | {"theta": 1.0},
    )
    with pytest.raises(IdentityError) as caught:
        library.open("shelf", quantised)
    said = str(caught.value)
    assert said.startswith("'shelf' was read with other settings: weights.quant (saved null, now i")
    assert "rope.theta (saved 10000.0, now 1.0)" in said


def test_what_was_settled_when_it_was_read_wins(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    book.ingest(library)
    wanted = replace(sample.IDENTITY, prefill=None, prefix=None)
    with sample.find(library, book, wanted) as entry:
        assert entry.identity == sample.IDENTITY
    with pytest.raises(ValueError, match="left open"):
        library.longest_prefix(wanted, book.ids)
    with pytest.raises(ValueError, match="left open"):
        library.write(wanted, book.texts)


def test_of_two_prefixes_the_last_one_used_is_found(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    tomorrow = replace(sample.IDENTITY, prefix="tomorrow")
    keys = [book.ingest(library), book.ingest(library, tomorrow)]
    for seconds, key in enumerate(keys):
        os.utime(library.path / "entries" / f"{key}.json", (seconds, seconds))
    with sample.find(library, book, replace(tomorrow, prefix=None)) as entry:
        assert entry.identity.prefix == "tomorrow"
    with pytest.raises(LibraryError, match=r"2 entries called .book\.txt.; give the key of one"):
        library.open("book.txt")


def test_entries_of_one_name_are_told_apart(library: Library, sample: ModuleType) -> None:
    book, plain = sample.Book(), sample.IDENTITY
    others = {
        "cache wave, codec int8": plain,
        "cache wave, codec int4": replace(plain, codec="int4"),
        "cache dense, codec int8": replace(plain, clustering=None),
    }
    keys = {words: book.ingest(library, identity) for words, identity in others.items()}
    with pytest.raises(LibraryError) as caught:
        library.find("book.txt")
    listed = str(caught.value).partition("give the key of one: ")[2].split("; ")
    assert sorted(listed) == sorted(f"{key[:12]} ({words})" for words, key in keys.items())


def test_of_other_weights_the_rest_of_the_model_is_not_told(
    library: Library, sample: ModuleType
) -> None:
    other = replace(sample.IDENTITY, weights={"a": "2" * 64, "quant": "int4, format 1"})
    for identity in (sample.IDENTITY, replace(other, tokenizer="3" * 64, model={"layers": 3})):
        sample.Book().ingest(library, identity)
    told = r"weights [0-9a-f]{6}, quant int4\)"
    with pytest.raises(LibraryError, match=told) as caught:
        library.find("book.txt")
    assert "layers" not in str(caught.value)


def test_an_entry_gets_another_name_unless_it_is_open(library: Library, sample: ModuleType) -> None:
    book = sample.Book(name="stdin")
    key = book.ingest(library)
    with library.open("stdin"), pytest.raises(LockedError, match="is open in a chat"):
        library.rename(key, ["play.txt"])
    library.rename(key, ["play.txt"])
    with library.open("play.txt") as entry:
        book.assert_is(entry)
        assert [document.name for document in entry.documents] == ["play.txt"]
    with pytest.raises(LibraryError, match="no entry 'stdin'"):
        library.find("stdin")


def test_one_ingest_at_a_time(library: Library, root: Path, sample: ModuleType) -> None:
    book = sample.Book()
    with library.write(sample.IDENTITY, book.texts):
        with pytest.raises(LockedError, match=rf"another ingest is running \(pid \d+\) in {root}"):
            Library(root).write(sample.IDENTITY, book.texts)
        with pytest.raises(LockedError):
            library.collect()
    book.ingest(Library(root))


def test_another_process_is_named(library: Library, root: Path, sample: ModuleType) -> None:
    sample.Book().ingest(library)
    code = (
        "import sys; from pathlib import Path; from retrolocal.library.locks import lock_writer;"
        "lock = lock_writer(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(LockedError, match=rf"\(pid {child.pid}\)"):
            library.collect()
        child.communicate()
    assert library.collect().files == 0


def test_what_is_open_is_not_removed(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    book.ingest(library)
    with library.open("book.txt"), pytest.raises(LockedError, match="open in another program"):
        library.remove("book.txt")
    with library.longest_prefix(sample.IDENTITY, book.ids) as prefix:
        cleaned = library.remove("book.txt")
        assert cleaned.in_use == 3
        assert prefix.segments[0].token_ids().tolist() == book.piece(0)
        prefix.segments[0].check()
    del prefix
    gc.collect()
    assert library.collect().files == 3
    assert sample.content(library.path) == {}


def test_cleaning_keeps_what_an_interrupted_ingest_saved(
    library: Library, sample: ModuleType
) -> None:
    book = sample.Book()
    book.ingest(library, until=2)
    before = sample.content(library.path)
    stray = library.path / "segments" / ("f" * 64 + ".safetensors")
    stray.write_bytes(b"x" * 10)
    (library.path / "tmp" / "123-0123456789abcdef").touch()
    (library.path / "segments" / "notes.txt").write_text("of the user")
    cleaned = library.collect()
    assert (cleaned.files, cleaned.bytes, cleaned.in_use) == (2, 10, 0)
    assert (library.path / "segments" / "notes.txt").exists()
    (library.path / "segments" / "notes.txt").unlink()
    assert sample.content(library.path) == before


def test_a_missing_or_damaged_segment_is_one_line_and_is_made_again(
    library: Library, sample: ModuleType
) -> None:
    book = sample.Book()
    book.ingest(library)
    whole = sample.content(library.path)
    second, third = (
        library.path / "segments" / f"{file.key}.safetensors"
        for file in library.find("book.txt").segments[1:]
    )
    second.unlink()
    with pytest.raises(DamagedError, match=r"is missing \(was it removed\?\); ingest the document"):
        library.open("book.txt")
    with library.longest_prefix(sample.IDENTITY, book.ids) as prefix:
        assert prefix.tokens == 40
        assert len(prefix.damage) == 1
    third.write_bytes(third.read_bytes()[:-1] + b"?")
    written: list[int] = []
    book.ingest(library, saved=written.append)
    assert written == [80, 120, 127]
    assert sample.content(library.path) == whole


def test_damage_in_the_last_segment_shortens_the_prefix(
    library: Library, sample: ModuleType
) -> None:
    book = sample.Book()
    book.ingest(library)
    last = library.find("book.txt").segments[-1]
    path = library.path / "segments" / f"{last.key}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with library.longest_prefix(sample.IDENTITY, book.ids) as prefix:
        assert prefix.tokens == 80
        assert "is damaged between byte" in prefix.damage[0]


def test_a_segment_that_is_there_is_not_written_again(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    book.ingest(library)
    files = {p: p.stat().st_ino for p in (library.path / "segments").iterdir()}
    with library.write(sample.IDENTITY, [sample.document("copy.txt", "same")]) as writer:
        for number in range(3):
            writer.append_segment(book.piece(number), book.tensors(number))
    assert {p: p.stat().st_ino for p in (library.path / "segments").iterdir()} == files


def test_a_corpus_may_be_called_like_a_document(library: Library, sample: ModuleType) -> None:
    keys = {
        "document": sample.Book().ingest(library),
        "corpus": sample.Book(corpus="book.txt").ingest(library),
    }
    for kind, key in keys.items():
        with library.open("book.txt", kind=kind) as entry:
            assert (entry.key, entry.kind) == (key, kind)
    told = rf"2 entries called .book\.txt.; .*{keys['corpus'][:12]} \(kind corpus\)"
    with pytest.raises(LibraryError, match=told):
        library.open("book.txt")


def test_other_tensors_under_the_same_key_are_refused(library: Library, sample: ModuleType) -> None:
    sample.Book().ingest(library)
    other = sample.Book(name="other.txt", bytes_per_token=8)
    with (
        library.write(sample.IDENTITY, other.texts) as writer,
        pytest.raises(ValueError, match="the identity does not hold everything"),
    ):
        writer.append_segment(other.piece(0), other.tensors(0))


def test_size_is_asked_for_before_the_work(library: Library, sample: ModuleType) -> None:
    with pytest.raises(SpaceError, match=r"book.txt needs [\d,.]+ GiB in .* GiB are free; free"):
        library.write(sample.IDENTITY, sample.Book().texts, expected_bytes=1 << 60)
    sample.Book().ingest(library)


def test_a_writer_takes_nothing_more_after_an_error(library: Library, sample: ModuleType) -> None:
    book = sample.Book()
    with library.write(sample.IDENTITY, book.texts) as writer:
        with pytest.raises(ValueError, match="a token id is outside"):
            writer.append_segment([-1], {})
        with pytest.raises(ValueError, match="reserved"):
            writer.append_segment([1], {"pad.1": torch.zeros(1)})
        with pytest.raises(LibraryError, match="nothing more can be saved after an error"):
            writer.append_segment(book.piece(0), book.tensors(0))


def test_private_files(library: Library, sample: ModuleType) -> None:
    sample.Book().ingest(library)
    for path in (library.path, *library.path.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("corpus", ["", "a\nb", "x" * 256, "\udcff", "\u2028", "\x9b"], ids=ascii)
def test_a_corpus_that_cannot_be_called_so(
    library: Library, sample: ModuleType, corpus: str
) -> None:
    with pytest.raises(
        UsageError, match=r"--corpus is .*; a name has 1 to 255 characters"
    ) as caught:
        library.write(sample.IDENTITY, sample.Book().texts, corpus=corpus)
    assert len(str(caught.value).splitlines()) == 1
    assert not library.path.exists()


def test_nothing_is_no_entry(library: Library, sample: ModuleType) -> None:
    with pytest.raises(ValueError, match="an entry has 1 to 65,536 documents, not 0"):
        library.write(sample.IDENTITY, [])
    assert not library.path.exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\U0001f469\u200d\U0001f680\u00a0.pdf", "\U0001f469\u200d\U0001f680\u00a0.pdf"),
        ("a\nb\x1b[31m.txt", "a\ufffdb\ufffd[31m.txt"),
        ("\udcff.txt", "\ufffd.txt"),
        ("\U0003fffd", "\U0003fffd"),
        ("", "unnamed"),
        ("x" * 300, "x" * 255),
    ],
    ids=ascii,
)
def test_any_file_name_will_do(library: Library, sample: ModuleType, name: str, shown: str) -> None:
    book = sample.Book(documents=(replace(sample.document("a", "text"), name=name),))
    book.ingest(library)
    with library.open(shown) as entry:
        assert (entry.name, entry.documents[0].name) == (shown, shown)


@pytest.mark.parametrize(
    "changes",
    [{"digest": "A" * 64}, {"digest": "a"}, {"extractor": ""}, {"extractor": "a\n"}],
    ids=str,
)
def test_a_document_that_could_not_be_read_again_is_refused(
    library: Library, sample: ModuleType, changes: dict[str, str]
) -> None:
    document = replace(sample.document("a.txt", "text"), **changes)
    with pytest.raises(ValueError, match=r"hexadecimal digits|no control characters"):
        library.write(sample.IDENTITY, [document])
    assert library.catalogue().manifests == ()
    sample.Book().ingest(library)


def test_an_entry_has_a_size(library: Library, sample: ModuleType) -> None:
    many = [sample.document("a.txt", "text")] * 65_537
    with pytest.raises(ValueError, match="an entry has 1 to 65,536 documents, not 65537"):
        library.write(sample.IDENTITY, many)


def test_a_page_map_has_at_most_16_bytes_a_token(library: Library, sample: ModuleType) -> None:
    with (
        library.write(sample.IDENTITY, sample.Book().texts) as writer,
        pytest.raises(ValueError, match="a page map of 17 bytes for 1 tokens"),
    ):
        writer.finish([1], {}, bytes(17))


def test_an_identity_is_what_json_keeps_of_it(sample: ModuleType) -> None:
    one = replace(sample.IDENTITY, model={"b": (1, 2), "a": 1.5})
    assert one == replace(sample.IDENTITY, model={"a": 1.5, "b": [1, 2]})
    assert Identity.of(one.facts()) == one
    for wrong in (float("nan"), {1: 2}, b"x", 1 << 60):
        with pytest.raises(ValueError, match=r"."):
            replace(sample.IDENTITY, model=wrong)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
def test_pages_that_were_checked_are_no_memory_of_the_program(
    library: Library, sample: ModuleType
) -> None:
    def mapped() -> int:
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.partition("RssFile:")[2].split()[0]) << 10

    book = sample.Book(bytes_per_token=1 << 18)
    book.ingest(library)
    with sample.find(library, book) as entry:
        before = mapped()
        for segment in entry.segments():
            segment.check()
        held = mapped() - before
        for segment in entry.segments():
            segment.forget_pages()
        assert held > 24 << 20
        assert mapped() - before < 1 << 20
        book.assert_is(entry)
