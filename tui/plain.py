"""The plain chat: questions from -p, a pipe or a prompt; answers streamed to stdout.

Binds the command line to one `Session` and shows its events. The first Ctrl-C ends the answer
and keeps the conversation, the next one leaves with 130; at the prompt the first one leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as ProgressBar,
)
from rich.text import Text

from ..caches import index_note
from ..config import SessionConfig
from ..default_model import default_model
from ..device import device_note, gpu_bytes
from ..errors import Interrupted, UsageError
from ..fetching import bring
from ..generate import Piece, Progress
from ..hub import lasting_name
from ..ingest import Document, given_once
from ..kernels.compiled import unkept_note
from ..library import Library
from ..report import Report
from ..session import AskOptions, Reply, Session
from ..shared_options import extraction
from ..shelf import Keeping, corpus_documents, document_of
from ..statistics import CacheStatistics
from ..thinking import thoughts
from .system_text import system_text
from .terminal import knows_codes


def chat(arguments: argparse.Namespace, config: SessionConfig, sampling: dict[str, float]) -> int:
    """Runs `retrolocal chat`; returns the exit code."""
    screen = _Screen(quiet=arguments.quiet)
    questions = _questions(arguments)
    system = system_text(arguments)
    library, documents = None if arguments.no_store else Library(), []
    if arguments.corpus is not None:
        documents = corpus_documents(Library(), arguments.corpus)
    documents += _documents(arguments, library, screen)
    model = arguments.model
    if model is None:
        chosen = default_model(gpu_bytes=gpu_bytes(config), corpus=arguments.corpus)
        model = chosen.model
        screen.say(chosen.note)
    bring(model, config, Report(as_json=False, quiet=arguments.quiet), documents)
    with screen.progress() as progress:
        keeping = None
        if library is not None and documents:
            keeping = Keeping(
                library=library,
                corpus=arguments.corpus,
                model=lasting_name(model, config.revision),
                tell=screen.say,
            )
        session = Session.open(
            model,
            config,
            documents=documents,
            progress=progress,
            keeping=keeping,
            notice=screen.say,
        )
    for note in (device_note(config), index_note(config), session.first_time()):
        if note is not None:
            screen.say(note)
    with session:
        session.set_system(system)
        return _Chat(session, arguments, sampling, screen).run(questions)


_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class _Chat:
    def __init__(
        self,
        session: Session,
        arguments: argparse.Namespace,
        sampling: dict[str, float],
        screen: _Screen,
    ) -> None:
        self._session = session
        self._json: bool = arguments.json
        self._sources: bool = arguments.sources and not arguments.json
        self._hides_thinking: bool = arguments.hidethinking
        colours = knows_codes(os.environ) and not os.environ.get("NO_COLOR")
        self._dims = sys.stdout.isatty() and colours
        self._thinks = False
        self._screen = screen
        self._options = AskOptions(
            max_new_tokens=arguments.predict,
            sampling=session.sampling(**sampling),
            stop=tuple(arguments.reverse_prompt),
            ignore_eos=arguments.ignore_eos,
            sources=arguments.json or arguments.sources,
        )
        self._answering = False
        self._stops = 0

    def run(self, questions: Iterator[str]) -> int:
        """Answers every question; 130 when the last answer was interrupted."""
        code = 0
        with self._interruptible():
            for question in questions:
                if question.strip():
                    code = self._answer(question)
        return code

    def _answer(self, question: str) -> int:
        self._answering, self._stops, self._thinks = True, 0, False
        try:
            with ExitStack() as bars:
                progress = bars.enter_context(self._screen.progress())
                for event in self._session.ask(question, self._options):
                    if isinstance(event, Progress):
                        progress(event)
                        continue
                    bars.close()
                    if isinstance(event, Piece):
                        self._write(event)
                    else:
                        return self._finish(event)
        except Interrupted as interrupted:
            self._screen.say(str(interrupted))
            return 130
        finally:
            self._answering = False
        raise AssertionError("an answer ends with a Reply")

    def _write(self, piece: Piece) -> None:
        if self._json:
            return
        if piece.thinking and self._hides_thinking:
            if not self._thinks:
                self._screen.say("thinking ...")
            self._thinks = True
            return
        sys.stdout.write(f"{_DIM}{piece.text}{_PLAIN}" if self._dimmed(piece) else piece.text)
        sys.stdout.flush()

    def _dimmed(self, piece: Piece) -> bool:
        return piece.thinking and self._dims

    def _finish(self, reply: Reply) -> int:
        if self._json:
            print(json.dumps(reply_facts(self._session, reply), ensure_ascii=False), flush=True)
        else:
            print(flush=True)
        if self._sources:
            for line in source_lines(reply):
                print(line, flush=True)
            if reply.cache.kind == "dense":
                self._screen.say("passages are found by the index: --cache wave names them")
        for line in figures(self._session, reply):
            self._screen.say(line)
        if (note := unkept_note()) is not None:
            self._screen.say(note)
        return 130 if reply.stop_reason == "interrupted" else 0

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        def on_interrupt(number: int, frame: FrameType | None) -> None:
            self._stops += 1
            if not self._answering or self._stops > 1:
                raise KeyboardInterrupt
            self._session.stop()

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            # Once interrupted the program is leaving; one more Ctrl-C must not break that.
            signal.signal(signal.SIGINT, signal.SIG_IGN if self._stops else before)


def reply_facts(session: Session, reply: Reply) -> dict[str, Any]:
    """The object that --json prints."""
    cache, thinking = reply.cache, thoughts(reply.thinking)
    return {
        "text": reply.answer,
        **({"thinking": thinking} if thinking else {}),
        "model": session.name,
        "prompt_tokens": reply.prompt_tokens,
        "generated_tokens": reply.generated_tokens,
        "load_seconds": round(session.load_seconds, 3),
        "prefill_seconds": round(reply.prefill_seconds, 3),
        "decode_tokens_per_second": round(reply.decode_tokens_per_second, 2),
        "stop_reason": reply.stop_reason,
        "cache": {
            "kind": cache.kind,
            "tokens": cache.tokens,
            "steady_tokens": cache.steady_tokens,
            "clusters": cache.clusters,
            "retrieved_tokens_per_step": round(cache.retrieved_tokens, 1),
            "bytes": cache.bytes,
            "mass_exact": round(cache.mass_exact, 6),
            "mass_estimated": round(cache.mass_estimated, 6),
            "index_bytes": cache.index_bytes,
            "bytes_per_step": round(cache.bytes_per_step),
            **(_file_facts(cache) if cache.file_bytes else {}),
        },
        "sources": [asdict(source) for source in reply.sources],
    }


def _file_facts(cache: CacheStatistics) -> dict[str, Any]:
    """Of keys and values that lie in a file."""
    return {
        "file_bytes": cache.file_bytes,
        "block_cache_bytes": cache.block_cache_bytes,
        "hit_ratio": None if cache.hit_ratio is None else round(cache.hit_ratio, 4),
        "slow_bytes": round(cache.slow_bytes),
    }


def source_lines(reply: Reply) -> list[str]:
    """What --sources prints under an answer."""
    lines = ["", "read from:"] if reply.sources else []
    for number, source in enumerate(reply.sources, start=1):
        where = source.document if source.page is None else f"{source.document}, page {source.page}"
        text = " ".join(source.text.split())
        lines.append(f"[{number}] {where} ({100 * source.mass:.1f} % of the attention): {text}")
    return lines


def figures(session: Session, reply: Reply) -> list[str]:
    """The timing line of an answer, and what the cache did."""
    rate = reply.prefill_tokens / max(reply.prefill_seconds, 1e-9)
    cache = reply.cache
    lines = [
        f"load {session.load_seconds:.2f} s | prompt {reply.prefill_tokens:,} of "
        f"{reply.prompt_tokens:,} tokens read in {reply.prefill_seconds:.2f} s "
        f"({rate:,.0f} tokens/s) | reply {reply.generated_tokens:,} tokens in "
        f"{reply.generate_seconds:.2f} s ({reply.decode_tokens_per_second:.1f} tokens/s)"
    ]
    if reply.stop_reason == "length":
        full = reply.prompt_tokens + reply.generated_tokens >= session.max_tokens
        limit = "the context is full (-c)" if full else "the limit of tokens was reached (-n)"
        lines[0] += f", cut off: {limit}"
    held = f"{cache.kind} cache: {cache.tokens:,} tokens, {cache.bytes / (1 << 20):,.1f} MiB"
    if cache.kind == "wave":
        held += (
            f" | {cache.steady_tokens:,} steady, the rest in {cache.clusters:,} clusters"
            f" | {cache.retrieved_tokens:,.0f} tokens retrieved per step and head"
            f" | attention {100 * cache.mass_exact:.1f} % exact, "
            f"{100 * cache.mass_estimated:.1f} % estimated"
        )
    if cache.file_bytes:
        held += (
            f" | {cache.file_bytes / (1 << 20):,.1f} MiB of it in a file behind a block cache of "
            f"{cache.block_cache_bytes / (1 << 20):,.1f}, "
            f"{cache.slow_bytes / (1 << 20):,.2f} MiB read from it per step"
        )
        if cache.hit_ratio is not None:
            held += f", {100 * cache.hit_ratio:.0f} % of the clusters found in memory"
    return [*lines, held]


class _Screen:
    """stderr: remarks, and progress bars on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(Text(line))

    @contextmanager
    def progress(self) -> Iterator[Callable[[Progress], None]]:
        """Shows Progress events as bars while the block runs; only on a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
        hidden = self._quiet or not self._console.is_terminal
        bar = ProgressBar(
            *columns,
            console=self._console,
            transient=True,
            disable=hidden,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with bar:
            tasks: dict[str, Any] = {}

            def show(event: Progress) -> None:
                if event.stage not in tasks:
                    name = {"load": "loading", "prefill": "reading"}[event.stage]
                    tasks[event.stage] = bar.add_task(name, unit=event.stage)
                bar.update(tasks[event.stage], completed=event.done, total=event.total)
                if event.done == event.total:
                    bar.remove_task(tasks.pop(event.stage))

            yield show


class _Rate(ProgressColumn):
    """`12,288 of 63,512 tokens, 6,980 tokens/s`, or bytes as MiB."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        scale, unit = (1 << 20, "MiB") if task.fields["unit"] == "load" else (1, "tokens")
        done, total, speed = (x / scale for x in (task.completed, task.total, task.speed or 0.0))
        return Text(f"{done:,.0f} of {total:,.0f} {unit}, {speed:,.0f} {unit}/s")


def _questions(arguments: argparse.Namespace) -> Iterator[str]:
    """-p, else a pipe as one question, else what is typed."""
    if arguments.prompt is not None:
        return iter([arguments.prompt])
    if sys.stdin is None:
        raise UsageError("stdin is closed; give a question with -p")
    if not sys.stdin.isatty():
        if "-" in arguments.file:
            raise UsageError("stdin is the document (-f -); give the question with -p")
        text = sys.stdin.read()
        if not text.strip():
            raise UsageError("there is no question on stdin; give one with -p")
        return iter([text.rstrip("\n")])
    if arguments.json:
        raise UsageError("--json needs a question: give one with -p or on stdin")
    return _typed(once=arguments.single_turn)


def _typed(*, once: bool) -> Iterator[str]:
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        if line.strip() in ("/exit", "/bye", "/quit"):
            return
        if _is_command(line):
            name = line.split()[0]
            print(
                f"{name} is a command of the chat on the whole screen: start without --plain; "
                "/exit leaves",
                file=sys.stderr,
            )
        elif line.strip():
            yield line
            if once:
                return


def _is_command(line: str) -> bool:
    """Whether the chat on the screen would do something with a line, not ask it."""
    if not line.startswith("/"):
        return False
    # Only here: it needs Textual, for which no line should wait.
    from .slash import COMMANDS

    name, _, argument = line[1:].strip().partition(" ")
    return any(name == known.name and (known.argument or not argument) for known in COMMANDS)


def _documents(
    arguments: argparse.Namespace, library: Library | None, screen: _Screen
) -> list[Document]:
    options = extraction(arguments)
    files = given_once(arguments.file, screen.say)
    documents = [document_of(file, options, library) for file in files]
    for document in documents:
        for note in document.notes:
            screen.say(f"{document.name}: {note}")
    return documents
