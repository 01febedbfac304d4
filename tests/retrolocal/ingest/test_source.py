from __future__ import annotations

import hashlib
import io
import os
import socket
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from retrolocal.errors import DocumentError
from retrolocal.ingest.source import open_source, printable


def refusal(path: str | Path) -> str:
    with pytest.raises(DocumentError) as caught, open_source(path):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "Book.TXT"
    path.write_bytes(b"x" * 5000)
    with open_source(path) as source:
        assert (source.name, source.suffix, source.size) == ("Book.TXT", ".txt", 5000)
        assert source.head == b"x" * 4096
        assert source.digest() == hashlib.blake2b(b"x" * 5000, digest_size=32).hexdigest()
    assert source.file.closed


def test_link_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with open_source(tmp_path / "b") as source:
        assert source.head == b"text"


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "no"
    assert refusal(path) == f"{path} does not exist; check the path"


def test_folder(tmp_path: Path) -> None:
    said = f"{tmp_path} is a folder; give a file, or the folder to retrolocal ingest"
    assert refusal(tmp_path) == said


def test_pipe_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "is a pipe; give a file, or - to read standard input" in refusal(path)


def test_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert refusal("s") == "s is a socket; give a file"


def test_device() -> None:
    assert refusal("/dev/null").startswith("/dev/null is a device")


def test_impossible_names(tmp_path: Path) -> None:
    assert "is not a possible file name" in refusal("a\0b")
    assert "cannot be opened" in refusal(tmp_path / ("x" * 300))
    assert refusal(f"{tmp_path}/a\nb").startswith(f"{tmp_path}/a\\nb does not exist")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    assert refusal(path) == f"{path} may not be read (permission denied)"


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    with open_source("-") as source:
        assert (source.name, source.label, source.head) == ("stdin", "stdin", b"hello")
        assert source.file.fileno() > 2


def test_stdin_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrolocal.ingest.source._MAX_SPOOLED_BYTES", 4)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    assert refusal("-").startswith("stdin sent more than")


def test_printable() -> None:
    assert printable("a\nb\x1b[0m\udcff é") == "a\\nb\\x1b[0m\\udcff é"


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="there is no /proc")
@pytest.mark.parametrize("name", ["/proc/version", "/proc/sys/kernel/ostype"])
def test_what_the_system_makes_while_it_is_read(name: str) -> None:
    content = Path(name).read_bytes()
    with open_source(name) as source:
        assert (source.size, source.head, source.label) == (len(content), content, name)
        source.require_unchanged()


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with open_source(tmp_path / "a.txt") as source:
        assert (source.size, source.head) == (0, b"")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no /proc")
def test_a_file_that_cannot_be_read() -> None:
    assert refusal("/proc/self/mem").startswith("/proc/self/mem cannot be read: ")


def test_no_room_for_what_cannot_be_sought_in(
    monkeypatch: pytest.MonkeyPatch, full_disk: AbstractContextManager[None]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 100)))
    with full_disk:
        assert f"stdin cannot be copied to {tempfile.gettempdir()} (" in refusal("-")
