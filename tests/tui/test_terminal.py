"""The terminal: what is decided before the application, who may write on it, how to copy."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from retrolocal.tui.clipboard import Clipboard, Copied
from retrolocal.tui.terminal import Descriptor, can_show, guarded_output


class Tty:
    def __init__(self, tty: bool) -> None:
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.mark.parametrize(
    ("ttys", "term", "shown"),
    [
        ((True, True, True), "xterm-256color", True),
        ((True, True, True), "dumb", False),
        ((True, True, True), "", False),
        ((False, True, True), "xterm", False),
        ((True, False, True), "xterm", False),
        ((True, True, False), "xterm", False),
    ],
)
def test_the_application_needs_three_terminals_and_a_name(
    ttys: tuple[bool, bool, bool], term: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, tty in zip(("stdin", "stdout", "stderr"), ttys, strict=True):
        monkeypatch.setattr(sys, name, Tty(tty))
    assert can_show({"TERM": term}) is shown
    monkeypatch.setattr(sys, "stdin", None)
    assert not can_show({"TERM": term})


GUARDED = """
import os, subprocess, sys
from pathlib import Path
from retrolocal.tui.terminal import guarded_output
print("before", flush=True)
with guarded_output(Path(sys.argv[1])):
    os.write(1, b"native one\\n")
    os.write(2, b"native two\\n")
    print("python one")
    print("python two", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo child; echo child >&2"])
    sys.__stderr__.write("drawn\\n")
    sys.__stderr__.flush()
    import logging
    logging.getLogger("retrolocal.x").error("logged")
    assert sys.__stdout__.fileno() != 1
print("after", flush=True)
"""


def test_only_the_application_writes_on_the_screen(tmp_path: Path) -> None:
    log = tmp_path / "new" / "chat.log"
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(log)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "before\nafter\n"
    assert done.stderr == "drawn\n"
    kept = log.read_text()
    for words in ("native one", "native two", "python one", "python two", "child", "logged"):
        assert words in kept
    assert log.stat().st_mode & 0o777 == 0o600


def test_output_comes_back_after_an_error(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from retrolocal.tui.terminal import guarded_output\n"
        "try:\n    with guarded_output(Path(sys.argv[1])):\n        raise ValueError\n"
        "except ValueError:\n    os.write(1, b'here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, check=True
    )
    assert done.stdout == b"here"


def test_all_is_written_also_where_a_part_is_taken_at_a_time() -> None:
    """As by a terminal that another program has made one that does not wait."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    text = bytes(range(256)) * 4096
    written: list[int] = []
    writer = Thread(target=lambda: written.append(Descriptor(theirs, pytest.fail).write(text)))
    writer.start()
    read = b""
    while len(read) < len(text):
        read += os.read(ours, 10_000)
    writer.join()
    for end in (ours, theirs):
        os.close(end)
    assert read == text
    assert written == [len(text)]


def test_what_is_written_to_a_terminal_that_is_gone_is_dropped_and_that_is_said_once() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    said: list[str] = []
    terminal = Descriptor(theirs, lambda: said.append("gone"))
    assert [terminal.write(b"drawn"), terminal.write(b"drawn")] == [5, 5]
    assert said == ["gone"]
    os.close(theirs)


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "chat.log").symlink_to(target)
    with guarded_output(tmp_path / "chat.log"):
        os.write(1, b"noise")
    assert target.read_text() == "precious"
    assert (tmp_path / "chat.log").read_text() == "noise"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "* +-- | ???? x o"),
        ("iso8859-1", "* +-- | ???? x o"),
        ("utf-8", "● ╭── ▌ 日本 x\u200d ◐"),
    ],
)
def test_a_terminal_without_unicode_shows_lookalikes_of_the_same_width(
    tmp_path: Path, encoding: str, shown: str
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from retrolocal.tui.terminal import guarded_output\n"
        "with guarded_output(Path(sys.argv[1])):\n"
        "    sys.__stderr__.write('● ╭── ▌ 日本 x\\u200d ◐')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.stderr.decode(encoding) == shown


@pytest.mark.parametrize(
    ("locale", "shown"), [("C", "* +--"), ("POSIX", "* +--"), ("C.UTF-8", "● ╭──")]
)
def test_the_c_locale_shows_ascii_although_python_takes_it_for_utf_8(
    tmp_path: Path, locale: str, shown: str
) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from retrolocal.tui.terminal import guarded_output\n"
        "with guarded_output(Path(sys.argv[1])):\n"
        "    sys.__stderr__.write('● ╭──')\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONIO")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        capture_output=True,
        check=True,
        env={**kept, "LC_ALL": locale},
    )
    assert done.stderr.decode("utf-8") == shown


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def copy(tmp_path: Path, text: str = "text", **environment: str) -> tuple[Copied, list[str]]:
    sent: list[str] = []
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    ways = Clipboard(
        environment={"PATH": path, **environment}, send=sent.append, keep=tmp_path / "k" / "copied"
    )
    return asyncio.run(ways.copy(text)), sent


def test_inside_tmux_its_buffer_is_filled(tmp_path: Path) -> None:
    tool(tmp_path / "bin", "tmux", f'echo "$@" > {tmp_path}/args; cat > {tmp_path}/got')
    done, sent = copy(tmp_path, "日本 [x]\n", TMUX="/tmp/x,1,0", SSH_TTY="/dev/pts/1")
    assert (done.way, done.certain, sent) == ("tmux", True, [])
    assert (tmp_path / "got").read_text() == "日本 [x]\n"
    assert (tmp_path / "args").read_text() == "load-buffer -w -\n"


def test_an_old_tmux_is_asked_without_w(tmp_path: Path) -> None:
    tool(tmp_path / "bin", "tmux", f'[ "$2" = -w ] && exit 1; cat > {tmp_path}/got')
    done, _ = copy(tmp_path, TMUX="x")
    assert done.way == "tmux"
    assert (tmp_path / "got").read_text() == "text"


def test_over_ssh_the_terminal_is_asked_and_a_file_kept(tmp_path: Path) -> None:
    tool(tmp_path / "bin", "xclip", "exit 0")
    done, sent = copy(tmp_path, SSH_TTY="x", DISPLAY=":0")
    assert (done.way, done.certain, sent) == ("the terminal", False, ["text"])
    assert done.file is not None
    assert (done.file.read_text(), done.file.stat().st_mode & 0o777) == ("text", 0o600)


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("xclip", {"DISPLAY": ":0"}),
        ("xsel", {"DISPLAY": ":0"}),
        ("wl-copy", {"WAYLAND_DISPLAY": "w"}),
        ("pbcopy", {}),
        ("clip.exe", {"WSL_DISTRO_NAME": "u"}),
    ],
)
def test_the_desktop_has_its_own_tool(
    tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    tool(tmp_path / "bin", name, f"cat > {tmp_path}/got")
    done, sent = copy(tmp_path, **environment)
    assert (done.way, done.certain, sent) == (name, True, [])
    assert (tmp_path / "got").read_text() == "text"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60", "exec 0<&-; exit 3"])
def test_a_tool_that_fails_is_passed_over(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.tui.clipboard.SECONDS", 0.2)
    tool(tmp_path / "bin", "xclip", script)
    done, sent = copy(tmp_path, "x" * 1_000_000, DISPLAY=":0")
    assert (done.way, len(sent)) == ("the terminal", 1)


def test_nothing_raises_when_the_file_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("a file where a folder is wanted")
    done, sent = copy(tmp_path)
    assert (done.file, sent) == (None, ["text"])
