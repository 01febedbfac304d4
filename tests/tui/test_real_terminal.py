"""The real thing: `retrolocal chat` with the built-in model in tmux.

Keys go in as bytes, the screen is read back, and what the terminal is left in is asked of tmux.
Everything waits for what it wants to see; nothing depends on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 240.0
TEXT = "".join(
    f"In the year {1200 + n} the ship number {n} left the harbour of {n * n % 89} lights "
    f"with {n * 7 % 61} sailors and came back after {n * 3 % 17} days. "
    for n in range(120)
)
QUESTION = "In the year 1242 the ship number"

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """One window of a tmux server of its own, with a shell that reports exit codes."""

    def __init__(self, folder: Path, width: int = 110, height: int = 28) -> None:
        self.folder = folder
        self._name = f"retrolocal-{uuid.uuid4().hex[:8]}"
        environment = {
            **os.environ,
            "XDG_STATE_HOME": str(folder / "state"),
            "PS1": "$ ",
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
        }
        environment.pop("TMUX", None)
        size = ("-x", str(width), "-y", str(height))
        subprocess.run(
            ["tmux", "-L", self._name, "-f", "/dev/null", "new-session", "-d", *size, "sh"],
            env=environment,
            check=True,
        )
        # Without job control the shell waits also for a program that is paused from outside.
        self.type("set +m; clear")
        self.keys("Enter")

    def run(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._name, *words], capture_output=True, text=True, check=True
        )
        return done.stdout

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def keys(self, *keys: str) -> None:
        self.run("send-keys", *keys)

    def type(self, text: str) -> None:
        self.run("send-keys", "-l", text)

    def wait_for(self, words: str) -> str:
        """The screen once it holds these words, wherever a line ends."""
        began = time.monotonic()
        while words not in (screen := self.screen()) and words not in " ".join(screen.split()):
            assert time.monotonic() - began < PATIENCE, f"no {words!r} on\n{screen}"
            time.sleep(0.1)
        return screen

    def wait_gone(self, words: str) -> str:
        began = time.monotonic()
        while words in (screen := self.screen()):
            assert time.monotonic() - began < PATIENCE, f"still {words!r} on\n{screen}"
            time.sleep(0.1)
        return screen

    def flags(self) -> str:
        """Alternate screen, mouse reports, cursor: `0 0 1` for a terminal as it should be."""
        return self.run("display", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}").strip()

    def chat(self, *words: str, before: str = "", after: str = "") -> None:
        """Starts a chat; its exit code is printed when it ends."""
        command = f"{before} {sys.executable} -m retrolocal chat {' '.join(words)} {after}"
        self.type(f"{command.strip()}; echo left with $?")
        self.keys("Enter")

    def left_with(self) -> int:
        """The exit code, once the shell is back and the terminal is as it was."""
        began = time.monotonic()
        while True:
            found = re.findall(r"left with (\d+)", self.screen())
            if found and self.flags() == "0 0 1":
                return int(found[-1])
            assert time.monotonic() - began < PATIENCE, self.screen() + self.flags()
            time.sleep(0.1)

    def process(self) -> int:
        """The process id of the chat."""
        shell = self.run("display", "-p", "#{pane_pid}").strip()
        found = subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True, check=True)
        return int(found.stdout.split()[0])

    def close(self) -> None:
        self.run("kill-server")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    opened = Tmux(tmp_path)
    (tmp_path / "ships.txt").write_text(TEXT)
    yield opened
    opened.close()


@pytest.fixture
def chat(tmux: Tmux) -> Tmux:
    """A chat about the ships, ready to be asked."""
    tmux.chat("-m builtin --cache dense --temp 0 -f", str(tmux.folder / "ships.txt"))
    tmux.wait_for("ready")
    return tmux


def ask(chat: Tmux) -> str:
    chat.type(QUESTION)
    chat.keys("Enter")
    return chat.wait_for("first token")  # told when all of an answer is there


def test_start_ask_stop_and_leave(tmux: Tmux) -> None:
    tmux.chat("-m builtin --cache dense --temp 0 -n -1 --ignore-eos -f", f"{tmux.folder}/ships.txt")
    tmux.wait_for("Ask a question")
    tmux.type(QUESTION)
    tmux.keys("Enter")
    tmux.wait_for("answering")
    tmux.wait_for("left the harbour")
    assert "first token" not in tmux.screen()
    tmux.keys("Escape")
    tmux.wait_for("stopped ·")
    tmux.wait_for("ready")
    tmux.keys("C-q")
    assert tmux.left_with() == 0
    [kept] = (tmux.folder / "state" / "retrolocal" / "chats").glob("*.json")
    [turn] = json.loads(kept.read_text("utf-8"))["turns"]
    assert turn["question"] == QUESTION
    assert turn["answer"].split()[1:4] == ["left", "the", "harbour"]


def test_a_chat_is_opened_again_and_goes_on_without_being_read(chat: Tmux) -> None:
    ask(chat)
    chat.keys("C-q")
    assert chat.left_with() == 0
    folder = chat.folder / "state" / "retrolocal"
    [kept] = (folder / "chats").glob("*.safetensors")
    before = kept.stat().st_mtime_ns
    chat.run("clear-history")
    chat.type("clear")
    chat.keys("Enter")
    chat.wait_gone("left with")
    chat.chat("-m builtin --cache dense --temp 0 -f", f"{chat.folder}/ships.txt")
    chat.wait_for("ready")
    chat.keys("F4")
    chat.wait_for("1 of 1 chats")
    chat.keys("Enter")
    chat.wait_for("left the harbour")
    chat.wait_for("ready")
    assert "Only the text" not in chat.screen()
    chat.keys("Up")
    chat.wait_for("│ In the year 1242")
    chat.keys("C-c")
    chat.type("In the year 1217 the ship number")
    chat.keys("Enter")
    chat.wait_for("17 left the harbour")
    chat.wait_for("ready")
    chat.keys("C-q")
    assert chat.left_with() == 0
    [again] = (folder / "chats").glob("*.safetensors")
    assert again == kept
    assert again.stat().st_mtime_ns > before
    [written] = (folder / "chats").glob("*.json")
    assert len(json.loads(written.read_text("utf-8"))["turns"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_give_the_terminal_back(chat: Tmux, number: signal.Signals) -> None:
    os.kill(chat.process(), number)
    assert chat.left_with() == 128 + number


def test_ctrl_c_twice_leaves_with_130(chat: Tmux) -> None:
    chat.keys("C-c", "C-c")
    assert chat.left_with() == 130


def test_the_size_changes_while_an_answer_is_written(tmux: Tmux) -> None:
    tmux.chat("-m builtin --cache dense --temp 0 -n -1 --ignore-eos -f", f"{tmux.folder}/ships.txt")
    tmux.wait_for("ready")
    tmux.type(QUESTION)
    tmux.keys("Enter")
    tmux.wait_for("answering")
    for width, height, words in ((200, 50, "F1 help"), (30, 8, "too small"), (100, 30, "F1 help")):
        tmux.run("resize-window", "-x", str(width), "-y", str(height))
        assert "Traceback" not in tmux.wait_for(words)
    tmux.keys("Escape")
    tmux.wait_for("ready")
    tmux.keys("C-q")
    assert tmux.left_with() == 0


def test_copying_fills_the_buffer_of_tmux(chat: Tmux) -> None:
    ask(chat)
    chat.type("/copy")
    chat.keys("Enter")
    chat.wait_for("by tmux")
    assert "left the harbour" in chat.run("show-buffer")


def test_several_lines_by_ctrl_j_and_by_alt_enter_where_it_is_told_from_enter(chat: Tmux) -> None:
    chat.wait_for("ready")
    chat.type("one")
    chat.wait_for("one")
    chat.keys("C-j")
    chat.type("two")
    chat.run("send-keys", "-l", "\x1b[13;3u")
    chat.type("three")
    chat.wait_for("three")
    rows = [line.strip("│ ") for line in chat.screen().splitlines()]
    at = rows.index("one")
    assert rows[at : at + 3] == ["one", "two", "three"]


def test_the_mouse_scrolls_and_selects(chat: Tmux) -> None:
    ask(chat)
    chat.run("send-keys", "-l", "\x1b[<64;10;10M")
    chat.run("send-keys", "-l", "\x1b[<0;4;24M\x1b[<32;30;24M\x1b[<0;30;24m")
    chat.wait_for("ready")


def test_focus_reports_change_nothing(chat: Tmux) -> None:
    chat.run("send-keys", "-l", "\x1b[O")
    chat.run("send-keys", "-l", "\x1b[I")
    chat.type("still here")
    chat.wait_for("still here")


def test_other_output_does_not_reach_the_screen(tmux: Tmux) -> None:
    """A module that writes on every descriptor while the model is opened."""
    noise = (
        "import os, subprocess\n"
        "os.write(1, b'NOISE-1')\nos.write(2, b'NOISE-2')\n"
        "subprocess.run(['sh', '-c', 'echo NOISE-3; echo NOISE-4 >&2'])\n"
    )
    (tmux.folder / "noisy").mkdir()
    (tmux.folder / "noisy" / "psutil_noise.py").write_text(noise)
    starter = tmux.folder / "start.py"
    starter.write_text(
        f"import sys; sys.path.insert(0, {str(tmux.folder / 'noisy')!r})\n"
        "import retrolocal.tui.session_engine as engine\n"
        "opened = engine.SessionEngine.open\n"
        "def noisy(self, control, *, download):\n"
        "    import psutil_noise\n"
        "    return opened(self, control, download=download)\n"
        "engine.SessionEngine.open = noisy\n"
        "from retrolocal.cli import main\n"
        "sys.exit(main(['chat', '-m', 'builtin']))\n"
    )
    tmux.type(f"{sys.executable} {starter}; echo left with $?")
    tmux.keys("Enter")
    screen = tmux.wait_for("ready")
    assert "NOISE" not in screen
    log = (tmux.folder / "state" / "retrolocal" / "chat.log").read_text()
    assert all(f"NOISE-{number}" in log for number in (1, 2, 3, 4))
    tmux.keys("C-q")
    assert tmux.left_with() == 0


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [
        ("", "-p 'In the year'", "| cat"),
        ("", "-p 'In the year'", "2> errors.txt"),
        ("echo 'In the year' |", "", ""),
    ],
    ids=["pipe", "errors-to-a-file", "question-in-a-pipe"],
)
def test_without_a_whole_terminal_it_is_plain(
    tmux: Tmux, before: str, words: str, after: str
) -> None:
    tmux.type(f"cd {tmux.folder}; clear")
    tmux.keys("Enter")
    tmux.chat("-m builtin -n 8 -f ships.txt", words, before=before, after=after)
    assert tmux.left_with() == 0
    assert "F1 help" not in tmux.screen()


def test_a_dumb_terminal_is_plain(tmux: Tmux) -> None:
    tmux.chat("-m builtin -n 8 -f", f"{tmux.folder}/ships.txt", before="TERM=dumb")
    tmux.wait_for("\n>")
    tmux.keys("C-d")
    assert tmux.left_with() == 0


def test_no_escape_codes_go_into_a_pipe(tmux: Tmux) -> None:
    out = tmux.folder / "out.txt"
    tmux.chat("-m builtin -n 8 -p 'In the year' -f", f"{tmux.folder}/ships.txt > {out} 2>&1")
    assert tmux.left_with() == 0
    assert b"\x1b" not in out.read_bytes()


@pytest.mark.parametrize("locale", ["LC_ALL=C", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"])
def test_a_locale_without_unicode_and_no_colour_stay_legible(tmux: Tmux, locale: str) -> None:
    tmux.type("clear")
    tmux.keys("Enter")
    tmux.chat("-m builtin", before=f"NO_COLOR=1 LANG=C {locale}")
    assert tmux.wait_for("ready").isascii()
    tmux.keys("C-q")
    assert tmux.left_with() == 0


def test_an_interface_that_fails_says_where_to_look(tmux: Tmux) -> None:
    starter = tmux.folder / "start.py"
    starter.write_text(
        "import sys\nimport retrolocal.tui.chat_screen as chat\n"
        "def broken(self, *rest):\n    raise RuntimeError('no good')\n"
        "chat.ChatScreen.opened = broken\n"
        "from retrolocal.cli import main\nsys.exit(main(['chat', '-m', 'builtin']))\n"
    )
    tmux.type(f"{sys.executable} {starter}; echo left with $?")
    tmux.keys("Enter")
    assert tmux.left_with() == 1
    screen = tmux.screen()
    assert "retrolocal: the interface failed" in screen
    assert "Traceback" not in screen
    log = (tmux.folder / "state" / "retrolocal" / "chat.log").read_text()
    assert "no good" in log
