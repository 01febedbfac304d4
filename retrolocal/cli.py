"""The command `retrolocal`: parses, calls one method of a session, shows what comes back.

Everything heavy is imported inside a command, so that --help answers at once. Text of the model
goes to stdout; all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 128 + n for
signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from . import __version__
from .arguments import command_parser, parsed
from .config import SamplingConfig, SessionConfig, limit_spinning, require_model
from .errors import RetrolocalError, UsageError
from .settings import apply_settings
from .shared_options import (
    batch_option,
    device_options,
    extraction,
    extraction_options,
    loading_config,
    model_options,
    prefill_option,
    ram_bytes,
    ram_option,
    threads_option,
    wave_config,
    wave_options,
)
from .stdout import STDOUT, drop_stdout, prepare_stdout, stdout_flushed

USAGE = """usage: retrolocal COMMAND [options]

commands:
  chat       ask a model about a document, or talk to it
  ingest     read documents ahead, to ask about them at once later
  bench      how fast: attention, decode, prefill, buffer, reopen, load, all
  eval       how faithful: attention, quant
  library    what has been read: list, show, verify, rm, gc, path
  pull       fetch a model from the Hugging Face Hub
  list       models in its cache; show NAME and rm NAME: one of them
  config     every setting: its value, and whether a file, a variable or a flag gave it
  plan       what a model and a text take here, in memory and time, and what fits
  doctor     whether all is here that the program needs, and what to do

options:
  -h, --help  show this help, or that of a command
  --version   show the version

Read a document and ask about it:  retrolocal chat -f book.pdf
"""

MODEL_COMMANDS = {"pull": "pull", "list": "list", "ls": "list", "show": "show", "rm": "rm"}
"""What people type -> the command."""
CALLED_ELSEWHERE = {
    "run": "chat -m MODEL",
    "ps": "library list",
    "remove": "rm",
    "download": "pull",
}
"""What other programs call a command -> what it is here."""
AGAIN_SECONDS = 0.05
"""After which an interrupt that Python ignored comes again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    limit_spinning()
    prepare_stdout()
    try:
        with _interrupts_kept(), stdout_flushed():
            return _run(words)
    except RetrolocalError as error:
        with contextlib.suppress(BrokenPipeError):
            print(f"retrolocal: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        drop_stdout()
        return 141
    except MemoryError:
        print("retrolocal: the machine ran out of memory; close other programs", file=sys.stderr)
        return 1
    except OSError as error:
        problem = error.strerror or error
        about = (
            f"{problem}: {error.filename}" if error.filename else f"the system refused: {problem}"
        )
        print(f"retrolocal: {about}", file=sys.stderr)
        if error.filename == STDOUT:
            drop_stdout()
        return 1


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """An interrupt that comes where Python ignores exceptions comes again a moment later.

    Compiling code takes seconds at a time and calls back: there a Ctrl-C would be printed and lost.
    """
    before = sys.unraisablehook

    def ignored(problem: sys.UnraisableHookArgs) -> None:
        if issubclass(problem.exc_type, KeyboardInterrupt):
            main_thread = threading.main_thread().ident
            again = threading.Timer(
                AGAIN_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT)
            )
            again.daemon = True
            again.start()
        else:
            before(problem)

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = before


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"retrolocal {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command == "chat":
        return _chat(rest)
    if command == "ingest":
        return _ingest(rest)
    if command == "bench":
        from .bench.command import bench

        return bench(rest)
    if command == "eval":
        from .evaluate.command import evaluate

        return evaluate(rest)
    if command == "library":
        from .library.command import library

        return library(rest)
    if command == "config":
        from .settings_command import config

        return config(rest)
    if command in MODEL_COMMANDS:
        from .model_commands import run

        return run(MODEL_COMMANDS[command], rest)
    if command == "plan":
        from .plan import plan

        return plan(rest)
    if command == "doctor":
        from .doctor import doctor

        return doctor(rest)
    raise UsageError(f"there is no command {command!r}; {_instead(command)}")


def _instead(command: str) -> str:
    """What may have been meant."""
    if command.startswith("-"):
        return "options come after one: retrolocal chat -m MODEL -f FILE"
    if os.path.exists(command):
        return f"to ask about a file: retrolocal chat -f {shlex.quote(command)}"
    known = [line.split()[0] for line in USAGE.splitlines() if line.startswith("  ")]
    close = difflib.get_close_matches(command, [*known, *MODEL_COMMANDS], n=1)
    meant = CALLED_ELSEWHERE.get(command) or (close[0] if close else None)
    return "see retrolocal --help" if meant is None else f"did you mean retrolocal {meant}?"


def _chat(words: list[str]) -> int:
    arguments = parsed(chat_parser(), words, apply_settings)
    if arguments is None:
        return 0
    config = session_config(arguments)
    check(arguments)
    if not arguments.no_store:
        _announce(arguments)
    with uncollected():
        if wants_application(arguments):
            from .tui.launch import chat
        else:
            from .tui.plain import chat
    return chat(arguments, config, sampling_given(arguments))


def _announce(arguments: argparse.Namespace) -> None:
    """What is kept of the documents is on its way before PyTorch is imported."""
    if arguments.file or arguments.corpus is not None:
        from .ahead import announce
        from .ingest import given_once
        from .library import Library

        files = given_once(arguments.file)
        announce(files, arguments.corpus, extraction(arguments), Library())


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While much is imported, and for what that made: it stays, so nobody looks for garbage in it.

    A tenth of the time of importing PyTorch, and 0.15 s of every later full collection. Where
    PyTorch is there already nothing is done: garbage that is alive now would stay for ever.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def wants_application(arguments: argparse.Namespace) -> bool:
    """Whether to chat in the whole screen: on a terminal, unless the words ask for less."""
    from .tui.terminal import can_show

    less = arguments.plain or arguments.json or arguments.single_turn
    return arguments.prompt is None and not less and can_show(os.environ)


def _ingest(words: list[str]) -> int:
    arguments = parsed(ingest_parser(), words, apply_settings)
    if arguments is None:
        return 0
    config = session_config(arguments)
    require_model(arguments.model)
    if "" in arguments.paths:
        raise UsageError("a PATH is empty; give files and folders, or - to read standard input")
    from .tui.ingest import ingest

    return ingest(arguments, config)


def ingest_parser() -> argparse.ArgumentParser:
    """The options of `retrolocal ingest`."""
    parser = command_parser(
        "retrolocal ingest",
        "retrolocal ingest PATH... [--corpus NAME] [-m MODEL] [options]",
        "Read documents and keep what the model made of them: a chat about them then starts at "
        "once. Interrupted, it goes on where it stopped when it is started again.",
    )
    group = parser.add_argument_group("texts")
    group.add_argument("paths", nargs="+", metavar="PATH", help="files and folders; - is stdin")
    group.add_argument(
        "--corpus",
        metavar="NAME",
        help="keep them together under this name; a corpus that exists grows by what is new",
    )
    extraction_options(group)
    model = parser.add_argument_group("model")
    model_options(model)
    device_options(model)
    threads_option(model)
    _cache_options(parser.add_argument_group("cache"))
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print progress as JSON, one per line")
    output.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    return parser


def chat_parser() -> argparse.ArgumentParser:
    """The options of `retrolocal chat`; names and defaults are llama.cpp's where it has them."""
    parser = command_parser(
        "retrolocal chat",
        "retrolocal chat [-m MODEL] [-f FILE]... [-p PROMPT] [options]",
        "Ask a model about documents, or just talk to it. On a terminal, without -p, the chat "
        "takes the whole screen (--plain: line by line); a question may also be piped in.",
    )
    _model_options(parser.add_argument_group("model and text"))
    _cache_options(parser.add_argument_group("cache"))
    _answer_options(parser.add_argument_group("answer"))
    _output_options(parser.add_argument_group("output"))
    return parser


SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}
"""Field of SamplingConfig -> option."""


def sampling_given(arguments: argparse.Namespace) -> dict[str, float]:
    """The sampling settings on the command line; those not given are the model's to choose."""
    given = ((field, getattr(arguments, option)) for field, option in SAMPLING.items())
    return {field: value for field, value in given if value is not None}


def check(arguments: argparse.Namespace) -> None:
    """Refuses what can be refused before anything is imported or read."""
    SamplingConfig(**sampling_given(arguments))  # type: ignore[arg-type]
    if sys.stdout is None:
        raise UsageError("stdout is closed; there is nowhere to put the answer")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UsageError("--prompt is empty; give a question, or leave it out")
    require_model(arguments.model)
    if arguments.corpus is not None and (arguments.file or arguments.no_store):
        other = "-f" if arguments.file else "--no-store"
        raise UsageError(
            f"--corpus and {other} were both given; add files with retrolocal ingest FILE "
            f"--corpus {arguments.corpus}"
        )
    if arguments.corpus == "":
        raise UsageError("--corpus is empty; give a name (retrolocal library list shows them)")
    if "" in arguments.file:
        raise UsageError("-f is empty; give a file, or - to read standard input")
    if arguments.file.count("-") > 1:
        raise UsageError("-f - was given twice; stdin is one document")
    if arguments.system_prompt is not None and arguments.system_prompt_file is not None:
        raise UsageError("-sys and -sysf were both given; give one of them")


def session_config(arguments: argparse.Namespace) -> SessionConfig:
    return loading_config(
        arguments,
        cache=arguments.cache,
        wave=wave_config(arguments),
        prefill=arguments.prefill,
        ctx_size=arguments.ctx_size,
        batch_size=arguments.batch_size,
        ram=ram_bytes(arguments),
    )


def _model_options(group: argparse._ArgumentGroup) -> None:
    model_options(group)
    group.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a document to read: text, Markdown, reStructuredText, PDF, EPUB, DOCX, HTML or "
        "source code; may be repeated; - is stdin",
    )
    extraction_options(group)
    group.add_argument(
        "--corpus", metavar="NAME", help="ask about what was ingested under this name"
    )
    group.add_argument(
        "--no-store", action="store_true", help="neither keep what is read nor look for it"
    )
    group.add_argument("-p", "--prompt", help="ask this one question, print the answer and leave")
    group.add_argument("-sys", "--system-prompt", metavar="TEXT", help="instructions for the model")
    group.add_argument(
        "-sysf", "--system-prompt-file", metavar="FILE", help="read the instructions from a file"
    )
    device_options(group)
    threads_option(group)


def _cache_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cache",
        default="auto",
        metavar="auto|dense|wave",
        help="dense attends to everything, wave goes through the index; auto: wave from the length "
        "on where that is faster, measured once on this machine (default: auto)",
    )
    wave_options(group)
    prefill_option(group)
    group.add_argument(
        "-c",
        "--ctx-size",
        type=int,
        default=0,
        metavar="N",
        help="tokens of context (default: 0, as many as the model has positions for)",
    )
    batch_option(group)
    ram_option(group)


def _answer_options(group: argparse._ArgumentGroup) -> None:
    def number(*names: str, type: type, default: str, text: str) -> None:
        group.add_argument(*names, type=type, metavar="N", help=f"{text} (default: {default})")

    number(
        "-n",
        "--predict",
        "--n-predict",
        type=int,
        default="the model's own limit, else -1",
        text="tokens to generate at most; -1: as many as fit",
    )
    number(
        "-s",
        "--seed",
        type=int,
        default="-1",
        text="seed of the draw, any whole number but -1: a new one each time",
    )
    number("--temp", "--temperature", type=float, default="0.8", text="0 is greedy")
    number("--top-k", type=int, default="40", text="keep the k likeliest tokens; 0 or less: all")
    number("--top-p", type=float, default="0.95", text="keep this much probability; 1: all")
    number(
        "--min-p", type=float, default="0.05", text="drop what is less likely, relative to the best"
    )
    number("--repeat-penalty", type=float, default="1.0", text="penalise recent tokens; 1: not")
    number("--repeat-last-n", type=int, default="64", text="how many are recent; 0: none, -1: all")
    number("--presence-penalty", type=float, default="0.0", text="subtracted once per recent token")
    number("--frequency-penalty", type=float, default="0.0", text="subtracted per occurrence")
    group.add_argument(
        "-r",
        "--reverse-prompt",
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before this text; may be repeated",
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on past the end of the reply")


def _output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--plain",
        action="store_true",
        help="line by line, also on a terminal",
    )
    group.add_argument(
        "--hidethinking",
        action="store_true",
        help="do not show what a model thinks before it answers (else it is dimmed)",
    )
    group.add_argument(
        "--no-mouse",
        action="store_true",
        help="leave the mouse to the terminal",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object per answer")
    group.add_argument(
        "--sources",
        action="store_true",
        help="print the passages that the answer was read from (--json has them, too); "
        "they are found by the index, so not with --cache dense",
    )
    group.add_argument("-st", "--single-turn", action="store_true", help="leave after one answer")
    group.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
