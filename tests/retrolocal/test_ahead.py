"""What is kept of a document is asked of the disk before anything else; nothing is said of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retrolocal import ahead
from retrolocal.config import SessionConfig, WaveConfig
from retrolocal.ingest import Options
from retrolocal.library import Library
from retrolocal.session import Session
from retrolocal.shelf import Keeping, document_of

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes none")
WAVE = WaveConfig(segment_tokens=256, growth_tokens=64, sink_tokens=4, window_tokens=16)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


@pytest.fixture
def book(tmp_path: Path, library: Library) -> Path:
    """A document that the library has, alone and as a corpus."""
    path = tmp_path / "book.txt"
    path.write_text(" ".join(f"w{number}" for number in range(300)), encoding="utf-8")
    config = SessionConfig(cache="wave", wave=WAVE)
    for corpus in (None, "all"):
        keeping = Keeping(library=library, corpus=corpus, required=True)
        documents = [document_of(path)]
        with Session.open("builtin", config, documents=documents, keeping=keeping) as session:
            list(session.read_documents())
    return path


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the files that the system was told of."""
    found: set[str] = set()

    def told(file: int, start: int, size: int, advice: int) -> None:
        assert (start, size, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        found.add(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))

    monkeypatch.setattr(os, "posix_fadvise", told)
    return found


def wait_for(files: list[str], corpus: str | None, library: Library) -> None:
    thread = ahead.announce(files, corpus, Options(), library)
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is in memory."""
    monkeypatch.setattr(ahead, "_in_memory", lambda file: False)


@pytest.mark.usefixtures("cold")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files: Linux")
@pytest.mark.parametrize("corpus", [None, "all"])
def test_all_that_will_be_read_is_announced(
    book: Path, library: Library, announced: set[str], corpus: str | None
) -> None:
    wait_for([] if corpus else [str(book)], corpus, library)
    manifest = library.find("book.txt" if corpus is None else corpus)
    assert manifest.segments
    expected = {f"{file.key}.safetensors" for file in manifest.tensor_files}
    assert announced == expected | {blob.name for blob in manifest.blobs}


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell")
def test_what_is_in_memory_is_not_announced(
    book: Path, library: Library, announced: set[str]
) -> None:
    file = os.open(book, os.O_RDONLY)
    try:
        book.read_bytes()
        os.preadv(file, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError:
        pytest.skip("this file system does not tell")
    finally:
        os.close(file)
    for path in library.path.rglob("*"):
        if path.is_file():
            path.read_bytes()
    wait_for([str(book)], None, library)
    assert not announced


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files: Linux")
@pytest.mark.parametrize("missing", ["beginning", "end"])
def test_a_file_of_which_a_part_is_in_memory_is_announced(
    missing: str,
    book: Path,
    library: Library,
    announced: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def preadv(file: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        if offset == (0 if missing == "beginning" else os.fstat(file).st_size - 1):
            raise BlockingIOError
        return 1

    monkeypatch.setattr(os, "preadv", preadv)
    wait_for([str(book)], None, library)
    manifest = library.find("book.txt")
    expected = {f"{file.key}.safetensors" for file in manifest.tensor_files}
    assert announced == expected | {blob.name for blob in manifest.blobs}


@pytest.mark.usefixtures("cold")
def test_what_is_not_there_is_nobody_s_trouble(
    tmp_path: Path, book: Path, library: Library, announced: set[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("never read", encoding="utf-8")
    for files, corpus in (([str(other)], None), ([str(tmp_path)], None), ([], "nothing")):
        wait_for(files, corpus, library)
    wait_for([str(book)], None, Library(tmp_path / "nowhere"))
    next(library.path.glob("entries/*.json")).write_text("{}", encoding="utf-8")
    wait_for([], "all", library)
    assert ahead.announce(["-"], None, Options(), library) is None
    assert ahead.announce([], None, Options(), library) is None


def test_a_large_entry_is_left_on_the_disk(
    book: Path, library: Library, announced: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "CHECKED_WHOLE", 1000)
    wait_for([str(book)], None, library)
    assert announced == set()
