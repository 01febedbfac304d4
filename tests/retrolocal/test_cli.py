"""The command as a user runs it: real processes, exit codes, one line for every bad input."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrolocal.cli import chat_parser, main
from retrolocal.kernels import compiled


def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "retrolocal", *words],
        capture_output=True,
        text=True,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} tells of {i * i % 97} ships. " for i in range(90)))
    return path


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("chatt", "did you mean retrolocal chat?"),
        ("shwo", "did you mean retrolocal show?"),
        ("run", "did you mean retrolocal chat -m MODEL?"),
        ("-m", "options come after one: retrolocal chat -m MODEL -f FILE"),
        ("my book.txt", "to ask about a file: retrolocal chat -f 'my book.txt'"),
        ("xyzzy", "see retrolocal --help"),
    ],
)
def test_what_is_no_command_is_told_what_may_have_been_meant(
    word: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my book.txt").touch()
    assert main([word, "more"]) == 2
    assert capsys.readouterr().err == f"retrolocal: there is no command {word!r}; {hint}\n"


def test_plain_answer_and_figures(tiny_model: Path, book: Path) -> None:
    done = run(
        "chat",
        "-m",
        str(tiny_model),
        "-f",
        str(book),
        "-p",
        "who?",
        "-n",
        "9",
        "--temp=0",
        "--cache=wave",
    )
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    assert len(done.stdout.strip()) > 3
    lines = done.stderr.splitlines()
    assert lines[-2].startswith("load ")
    assert lines[-2].endswith("tokens/s), cut off: the limit of tokens was reached (-n)")
    assert lines[-1].startswith("wave cache: ")
    assert "clusters" in lines[-1]


def test_json_object(tiny_model: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "chat",
        "-m",
        str(tiny_model),
        "-f",
        str(book),
        "-p",
        "who?",
        "-n",
        "9",
        "--json",
        "-q",
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert captured.err == ""
    assert list(facts) == [
        *("text", "model", "prompt_tokens", "generated_tokens", "load_seconds"),
        *("prefill_seconds", "decode_tokens_per_second", "stop_reason", "cache", "sources"),
    ]
    assert list(facts["cache"]) == [
        *("kind", "tokens", "steady_tokens", "clusters", "retrieved_tokens_per_step"),
        *("bytes", "mass_exact", "mass_estimated", "index_bytes", "bytes_per_step"),
    ]
    assert facts["generated_tokens"] <= 9
    assert facts["cache"]["kind"] == "dense"
    assert facts["cache"]["tokens"] == facts["prompt_tokens"] + facts["generated_tokens"] - 1
    assert facts["cache"]["bytes"] == facts["cache"]["tokens"] * 2 * 2 * 2 * 16 * 4


def test_piped_question_equals_prompt(tiny_model: Path) -> None:
    words = ("chat", "-m", str(tiny_model), "-n", "9", "--temp", "0", "-q")
    assert run(*words, stdin="hello\n").stdout == run(*words, "-p", "hello").stdout


def test_document_on_stdin(tiny_model: Path, book: Path) -> None:
    words = ("chat", "-m", str(tiny_model), "-p", "who?", "-n", "9", "--temp", "0", "-q")
    piped = run(*words, "-f", "-", stdin=book.read_text())
    assert piped.returncode == 0
    assert piped.stdout == run(*words, "-f", str(book)).stdout


def test_a_page_is_read_as_its_text(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("<!doctype html><html><script>x</script><p>Hello <b>you</b>")
    (tmp_path / "plain.txt").write_text("Hello you")
    words = ("chat", "-m", str(tiny_model), "-p", "who?", "-n", "9", "--temp", "0")
    page = run(*words, "-f", str(tmp_path / "page.txt"))
    assert page.stdout == run(*words, "-f", str(tmp_path / "plain.txt")).stdout
    assert "page.txt: the name ends in .txt but the content is HTML; read as HTML" in page.stderr


def test_the_password_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat_parser().parse_args([]).password is None
    monkeypatch.setenv("RETROLOCAL_PDF_PASSWORD", "sesame")
    assert chat_parser().parse_args([]).password == "sesame"
    assert "sesame" not in chat_parser().format_help()
    assert chat_parser().parse_args(["--password", "other"]).password == "other"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-p", ""], 2, "--prompt is empty"),
        (["-p", "q", "-f", "{tmp}/none.txt"], 1, "none.txt"),
        (["-p", "q", "-f", "{tmp}"], 1, "is a folder"),
        (["-p", "q", "-f", "{tmp}/empty.txt"], 1, "empty"),
        (["-p", "q", "-f", "{tmp}/binary.txt"], 1, "binary.txt"),
        (["-p", "q", "-f", "{tmp}/long.txt"], 1, "4,096"),
        (["-p", "q", "-sysf", "{tmp}/none"], 1, "none"),
        (["-p", "q", "-sys", "a", "-sysf", "b"], 2, "-sys and -sysf"),
        (["-p", "q", "-n", "x"], 2, "--predict is 'x'; give a whole number"),
        (["-p", "q", "-ngl", "99"], 2, "no option -ngl"),
        (["-p", "q", "--temp", "-1"], 2, "--temp is -1.0"),
        (["-p", "q", "--top-p", "7"], 2, "--top-p is 7.0"),
        (["-p", "q", "--temp", "nan"], 2, "--temp is nan"),
        (["-p", "q", "-n", "-5"], 2, "--predict is -5"),
        (["-p", "q", "-n", "9" * 20], 2, "99; give at most 2147483648, or -1 (all that fit)"),
        (["-p", "q", "-r", ""], 2, "--stop is empty"),
        (["-p", "q", "-t", "100000"], 2, "--threads is 100000"),
        (["-p", "q", "-c", "100000"], 1, "4,096"),
        (["-p", "q", "-m", ""], 2, "--model is empty"),
        (["-p", "q", "-f", ""], 2, "-f is empty"),
        (["-p", "q", "--corpus", ""], 2, "--corpus is empty"),
        (["-f", "-", "-f", "-", "-p", "q"], 2, "given twice"),
        (["-f", "-", "-p", "q"], 1, "stdin"),
        ([], 2, "no question on stdin"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    tiny_model: Path,
    tmp_path: Path,
    words: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "long.txt").write_text("word " * 2000)
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert main(["chat", "-m", str(tiny_model), "-q", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("retrolocal: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{tmp}/nothing", "nothing"),
        ("{tmp}", "config.json"),
        ("not a name!", "not a name!"),
    ],
)
def test_bad_model_is_one_line(
    tmp_path: Path, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "-m", model.replace("{tmp}", str(tmp_path)), "-p", "q", "--offline"]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_closed_pipe_is_quiet(tiny_model: Path) -> None:
    command = f"{sys.executable} -m retrolocal chat -m {tiny_model} -p q -n 2000 --ignore-eos -q"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 3 >/dev/null"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode == 141


def interrupted(tiny_model: Path, times: int) -> tuple[int, str, str]:
    """Runs an endless answer and sends SIGINT after its first text."""
    words = ["chat", "-m", str(tiny_model), "-p", "q", "-n", "4000", "--ignore-eos", "--temp=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "retrolocal", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    process.stdout.read(1)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("times", [1, 2])
def test_interrupting_an_answer(tiny_model: Path, times: int) -> None:
    code, out, err = interrupted(tiny_model, times)
    assert code == 130
    assert len(out) < 4000
    assert "Traceback" not in err


@pytest.mark.parametrize(("closing", "code"), [("<&-", 2), (">&-", 2), (">/dev/full", 1)])
def test_closed_and_full_streams(tiny_model: Path, closing: str, code: int) -> None:
    question = "" if closing == "<&-" else "-p q"
    command = f"{sys.executable} -m retrolocal chat -m {tiny_model} {question} -n 5 -q {closing}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("retrolocal: ")
    assert done.stderr.count("\n") == 1
    assert "full" not in closing or "No space left on device: stdout" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_error_is_of_stdout_only_where_it_is(unbuffered: str, tmp_path: Path) -> None:
    """A long answer, which no buffer holds, and an error of something else that has no name."""
    program = tmp_path / "program.py"
    program.write_text(
        "import errno, os, sys\n"
        "from retrolocal import cli\n"
        "def fail(words):\n"
        "    if words == ['write']:\n"
        "        print('x' * 100_000)\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "cli._run = fail\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    for word, said in (("write", "No space left on device: stdout"), ("", "the system refused")):
        command = f"{sys.executable} {program} {word} > /dev/full"
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert ("stdout" in done.stderr) == (word == "write")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "chat --help", "library --help", "config"])
def test_help_that_a_full_disk_does_not_take(words: str, unbuffered: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m retrolocal {words} > /dev/full"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert done.returncode == 1
    assert done.stderr == "retrolocal: No space left on device: stdout\n"


@pytest.mark.parametrize("command", ["chat -p q -n 1 -f {} -f {}", "plan -f {} -f {}"])
def test_a_file_that_is_given_twice_is_read_once(
    command: str,
    tiny_model: Path,
    book: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command.format(book, book.parent / "." / "x" / ".." / book.name).split()
    (book.parent / "x").mkdir()
    assert main([*words, "-m", str(tiny_model)]) == 0
    assert "book.txt is given twice; it is read once" in capsys.readouterr().err


def test_a_file_without_a_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ingest", ""], ["plan", "-f", ""]):
        assert main(words) == 2
        assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["chat -p q -n 2 -f {book}", "ingest {book}"])
def test_compiled_code_that_cannot_be_kept_stops_nothing(
    command: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compiled, "UNKEPT", compiled.Unkept("/full (No space left on device)"))
    book = tmp_path / "book.txt"
    book.write_text("A short book.")
    words = command.format(book=book).split()
    assert main([*words, "-m", str(tiny_model)]) == 0
    note = "compiled code cannot be kept in /full (No space left on device)"
    assert capsys.readouterr().err.count(note) == 1


def test_output_that_cannot_show_a_character(tiny_model: Path) -> None:
    words = ["chat", "-m", str(tiny_model), "-p", "\u00e9\u4e2d", "-n", "5", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "retrolocal", *words],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr


INTERRUPTED_START = """
import runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "retrolocal.config":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
"""
STARTS = {
    "module": "runpy.run_module('retrolocal', run_name='__main__', alter_sys=True)",
    "script": (
        "from importlib.metadata import EntryPoint\n"
        "import pathlib, tomllib\n"
        "project = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())['project']\n"
        "value = project['scripts']['retrolocal']\n"
        "sys.exit(EntryPoint('retrolocal', value, 'console_scripts').load()())"
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_an_interrupt_while_the_program_starts_is_quiet(start: str) -> None:
    project = Path(__file__).parents[2] / "pyproject.toml"
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_START + STARTS[start], str(project)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


INTERRUPTED = """
import ctypes, signal, sys, time
from retrolocal import cli

@ctypes.CFUNCTYPE(None)
def interrupted():
    raise KeyboardInterrupt

def compiling(words):
    interrupted()
    time.sleep(10)
    return 0

# Whoever started the tests in the background had it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli._run = compiling
sys.exit(cli.main(["chat"]))
"""


def test_an_interrupt_in_a_callback_is_not_lost() -> None:
    """As it comes while LLVM compiles: Python ignores what a callback of C code raises."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_what_cut_an_answer_off_is_said(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", "-m", str(tiny_model), "-p", "who?", "--ignore-eos", "--temp", "0"]
    assert main([*words, "-c", "64", "-n", "-1"]) == 0
    assert "cut off: the context is full (-c)" in capsys.readouterr().err
    assert main([*words, "-n", "3"]) == 0
    assert "cut off: the limit of tokens was reached (-n)" in capsys.readouterr().err


def test_why_there_are_no_sources_is_said(
    tiny_model: Path, book: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", "-m", str(tiny_model), "-f", str(book), "-p", "who?", "-n", "3", "--sources"]
    assert main([*words, "--cache", "dense"]) == 0
    assert "passages are found by the index" in capsys.readouterr().err
    assert main([*words, "--cache", "wave"]) == 0
    assert "passages are found by the index" not in capsys.readouterr().err


def test_threads_leave_the_cores_from_python_too() -> None:
    code = "import os, retrolocal; retrolocal.load; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if "OMP" not in name}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "PASSIVE\n"
