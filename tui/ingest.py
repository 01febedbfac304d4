"""`retrolocal ingest`: reads documents ahead and keeps them, with an honest clock.

How long it will take is said before it starts where an earlier run has measured it: the pace of a
model on this machine is fitted while it reads (`time_left`) and remembered.

The first Ctrl-C finishes the piece that is being read and keeps it, the second leaves at once; the
next start goes on behind what is kept. What follows the last whole piece is kept with the end of
the text only. With --json every line on stdout is one object.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

import torch

from .. import __version__
from ..amounts import size_text, told_apart
from ..caches import index_note
from ..config import SessionConfig
from ..default_model import default_model
from ..device import device_name, device_note, gpu_bytes
from ..errors import DocumentError
from ..fetching import bring
from ..generate import Progress
from ..hub import lasting_name
from ..ingest import Document, given_once, read_documents
from ..ingest.source import STDIN, printable
from ..kernels.compiled import unkept_note
from ..library import FileId, Library, require_corpus_name
from ..library.manifest import name_like
from ..paths import disk_free
from ..remembered import remember, remembered
from ..report import Report
from ..room import MEASURING, Forecast
from ..session import Session
from ..shared_options import extraction
from ..shelf import Keeping, corpus_documents, known_document
from ..wave.zones import piece_end
from .leaving import left_promptly
from .time_left import Pace, TimeLeft, about, spoken

PACES = "reading.json"
MOST_NAMED = 4
"""Files that a line names one by one."""


def ingest(arguments: argparse.Namespace, config: SessionConfig) -> int:
    """Runs `retrolocal ingest`; returns the exit code."""
    report = Report(as_json=arguments.json, quiet=arguments.quiet)
    library, corpus = Library(), arguments.corpus
    if corpus is not None:
        require_corpus_name(corpus)
    documents = _documents(arguments, library, report)
    model = arguments.model
    if model is None:
        chosen = default_model(gpu_bytes=gpu_bytes(config), corpus=corpus)
        model = chosen.model
        report.remark(chosen.note)
    for said in (device_note(config), index_note(config)):
        if said is not None:
            report.remark(said)
    bring(model, config, report, documents)
    keeping = Keeping(
        library=library,
        corpus=corpus,
        required=True,
        checked=True,
        model=lasting_name(model, config.revision),
        tell=report.remark,
    )
    with ExitStack() as stack:
        with left_promptly(lambda: _say_unread(report)):
            opened = Session.open(
                model, config, documents=documents, keeping=keeping, notice=report.remark
            )
            session = stack.enter_context(opened)
            pace = _Pace(session)
            if session.first_time() == MEASURING:
                report.remark(MEASURING)
            if corpus is None and (line := _known_as(library, documents)) is not None:
                report.remark(line)
            tokens = _announce(session, documents, library, pace.known, report)
        code = _read(session, documents, tokens, arguments, pace, report)
    if (note := unkept_note()) is not None:
        report.remark(note)
    return code


def _documents(arguments: argparse.Namespace, library: Library, report: Report) -> list[Document]:
    """Those of the corpus, if there is one, and those named that it does not have."""
    documents: list[Document] = []
    corpus = arguments.corpus
    if corpus is not None:
        catalogue = library.catalogue()
        named = [found for found in catalogue.named(corpus) if found.kind == "corpus"]
        if any(found.state == "complete" for found in named):
            documents = corpus_documents(library, corpus)
        elif not named and catalogue.problems:
            report.remark(
                f"{corpus} is begun anew; if it was there before, it is one of the entries that "
                f"cannot be read ({len(catalogue.problems)}, see retrolocal library list)"
            )
    known = {document.digest for document in documents}
    older = {document.name for document in documents} - {STDIN}
    there: list[str] = []
    changed: list[str] = []
    for document in read_documents(
        arguments.paths,
        extraction(arguments),
        find=lambda unread: known_document(library, unread),
        tell=report.remark,
    ):
        for note in document.notes:
            report.remark(f"{document.name}: {note}")
        if document.digest in known:
            there.append(document.name)
            continue
        if document.name in older:
            changed.append(document.name)
        known.add(document.digest)
        documents.append(document)
    if there:
        report.remark(f"{_listed(there)} {'is' if len(there) == 1 else 'are'} there already")
    if changed:
        report.remark(
            f"{_listed(changed)}: {corpus} has an older text of this name, and both will be in it; "
            f"for the new one alone: retrolocal library rm {_quoted(corpus)}, then ingest all of "
            "its files again"
        )
    if not documents:
        raise DocumentError("there is nothing to read; give a file or a folder with some")
    return documents


def _known_as(library: Library, documents: Sequence[Document]) -> str | None:
    """That the library calls these texts otherwise."""
    files = [FileId(document.digest, document.extractor) for document in documents]
    names = [name_like(one.name) for one in documents]
    # Standard input is no name that anybody gave.
    entries = [
        known
        for known in library.entries_of(files)
        if all(one.name != STDIN for one in known.documents)
    ]
    if not entries or any(names == [one.name for one in known.documents] for known in entries):
        return None
    same = "text is" if len(names) == 1 else "texts are"
    return f'{_listed(names)}: the same {same} in the library as "{entries[0].name}"'


class _Pace:
    """How fast this session's model reads on this machine."""

    def __init__(self, session: Session) -> None:
        config = session.config
        parts = (
            f"retrolocal {__version__}",
            f"{device_name(session.device)}, {torch.get_num_threads()} threads",
            f"{session.name}, {session.dtype}",
            repr(session.model_config),
            f"{config.cache}, {config.prefill}, {config.batch_size}, {config.wave}",
        )
        self._key = hashlib.sha256("; ".join(parts).encode()).hexdigest()
        found = remembered(PACES, ("intercept", "slope")).get(self._key)
        self.known = None if found is None else Pace(**found)

    def learn(self, pace: Pace | None) -> None:
        if pace is not None:
            remember(PACES, self._key, asdict(pace))


def _announce(
    session: Session,
    documents: list[Document],
    library: Library,
    pace: Pace | None,
    report: Report,
) -> int:
    """Says what reading will take; returns the tokens of the documents."""
    forecast = session.documents_estimate()
    free, ram = disk_free(library.path), session.config.ram
    memory = min(forecast.memory.total, ram) if ram else forecast.memory.total
    seconds = None
    if pace is not None and not forecast.whole:
        seconds = pace.seconds(forecast.tokens, forecast.kept)
    report.say(
        {
            "event": "start",
            "documents": len(documents),
            "tokens": forecast.tokens,
            "kept_tokens": forecast.kept,
            "disk_bytes": forecast.disk,
            "free_bytes": free,
            "memory_bytes": memory,
            "kept": forecast.whole,
            "seconds_expected": None if seconds is None else round(seconds, 1),
        },
        f"{len(documents):,} document{'s' * (len(documents) != 1)}, "
        + _expected(forecast, free, memory, seconds),
    )
    return forecast.tokens


def _expected(forecast: Forecast, free: int, memory: int, seconds: float | None) -> str:
    """What is left to do, and what that takes."""
    tokens, kept = forecast.tokens, forecast.kept
    if forecast.whole:
        return f"{tokens:,} tokens, which the library has"
    begin = f"{tokens:,} tokens: "
    if kept:
        begin = f"{kept:,} of {tokens:,} tokens are kept; {tokens - kept:,} to read, "
    long = "for how long is known after the first pieces"
    if seconds is not None:
        long = f"{about(seconds)} at the pace of an earlier run"
    disk, there = told_apart(forecast.disk, free)
    return (
        f"{begin}about {disk} on disk ({there} free), "
        f"{size_text(memory)} of memory while reading, {long}"
    )


def _read(
    session: Session,
    documents: list[Document],
    tokens: int,
    arguments: argparse.Namespace,
    pace: _Pace,
    report: Report,
) -> int:
    began, clock, last = time.monotonic(), TimeLeft(), Progress("prefill", 0, 0)
    with _interruptible() as interrupted:
        for last in session.read_documents():
            now, read = time.monotonic(), tokens - last.total + last.done
            clock.advance(read, tokens, now)
            _show(last, clock.seconds(now), now - began, report)
            if interrupted() and read < tokens and not _in_a_piece(session, read, tokens):
                pace.learn(clock.fit())
                kept = session.documents_estimate().kept
                report.say(
                    {
                        "event": "stopped",
                        "done": last.done,
                        "total": last.total,
                        "kept_tokens": kept,
                    },
                    _stopped(kept, tokens, _piece_end(session, 0)),
                )
                return 130
    pace.learn(clock.fit())
    name = arguments.corpus or documents[0].name
    seconds = time.monotonic() - began
    text = ready_line(arguments, [document.name for document in documents])
    facts: dict[str, Any] = {"event": "done", "name": name, "read_tokens": last.total}
    report.say(facts | {"seconds": round(seconds, 3)}, text)
    return 0


def _in_a_piece(session: Session, read: int, tokens: int) -> bool:
    """Whether of a text of so many tokens a piece is being read that can be kept."""
    return _piece_end(session, read - 1) != read and _piece_end(session, read) <= tokens


def _piece_end(session: Session, tokens: int) -> int:
    return piece_end(tokens, session.config.wave, session.model_config.chunk_tokens)


def _say_unread(report: Report) -> None:
    """What an interruption before the first token leaves."""
    facts = {"event": "stopped", "done": 0, "total": None, "kept_tokens": None}
    report.say(facts, "stopped before anything was read: nothing new is kept")


def _stopped(kept: int, tokens: int, first: int) -> str:
    """What an interruption left of a text whose first piece has so many tokens."""
    if not kept:
        return (
            f"stopped; nothing is kept of fewer than {first:,} tokens: started again, it begins "
            "at the beginning"
        )
    return f"stopped; {kept:,} of {tokens:,} tokens are kept: start it again to go on"


def ready_line(arguments: argparse.Namespace, names: Sequence[str]) -> str:
    """What is ready, and how to ask about it: documents of these names, or their corpus."""
    chat, paths = "retrolocal chat", given_once(arguments.paths)
    if arguments.model is not None:
        chat += f" -m {_quoted(arguments.model)}"
    if arguments.corpus is not None:
        return f"{arguments.corpus} is ready: {chat} --corpus {_quoted(arguments.corpus)}"
    ready = f"{names[0]} is ready" if len(names) == 1 else f"{len(names):,} documents are ready"
    # Of files that are alike one was read; a folder is named by no -f.
    if len(names) != len(paths) or len(paths) > MOST_NAMED or any(map(os.path.isdir, paths)):
        return (
            f"{ready}: {chat} with -f for each of them, in the same order; --corpus NAME, given "
            "here, makes that one name"
        )
    files = " ".join(f"-f {_quoted(path)}" for path in paths)
    if "-" in paths:
        return f"{ready}: {chat} {files} -p QUESTION, with the same text on stdin again"
    return f"{ready}: {chat} {files}"


def _listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    shown, more = ", ".join(names[:MOST_NAMED]), len(names) - MOST_NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown


def _quoted(word: str) -> str:
    """As a shell reads it, on one line."""
    return shlex.quote(printable(word))


def _show(progress: Progress, left: float | None, seconds: float, report: Report) -> None:
    rate = progress.done / max(seconds, 1e-9)
    report.say(
        {
            "event": "progress",
            "done": progress.done,
            "total": progress.total,
            "seconds": round(seconds, 3),
            "seconds_left": None if left is None else round(left, 1),
        },
        f"{progress.done:,} of {progress.total:,} tokens, {rate:,.0f} tokens/s"
        + ("" if left is None else f", {spoken(left)}"),
        passing=True,
    )


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Gives a function that says whether Ctrl-C was pressed; the second press raises."""
    presses = 0

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: presses > 0
    finally:
        signal.signal(signal.SIGINT, before)
