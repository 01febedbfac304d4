"""The engine that is a Session: opens it, asks it, and turns its events into the interface's.

Everything heavy is imported when `open` is called, on the engine's thread: the first screen does
not wait for it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import SessionConfig
from ..errors import Interrupted, UsageError
from .engine import (
    Advanced,
    Answer,
    Began,
    CacheFigures,
    Control,
    DocumentFacts,
    DocumentsRead,
    Download,
    Measured,
    Meter,
    NeedsDownload,
    Opened,
    Source,
    Turn,
    Wrote,
)

if TYPE_CHECKING:
    from ..generate import Progress
    from ..ingest import Options
    from ..ingest.document import Document
    from ..library import Library
    from ..session import AskOptions, Reply, Session
    from ..shelf import Keeping

MEASURE_SECONDS = 0.33
"""Between two figures while an answer is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the command line says about the engine."""

    model: str
    config: SessionConfig
    files: tuple[str, ...] = ()
    extraction: Options
    corpus: str | None = None
    store: bool = True
    """Whether what is read is kept in the library, and looked for there."""
    system: str | None = None
    sampling: Mapping[str, float]
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class SessionEngine:
    """See `Engine` for who may call what."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._session: Session | None = None
        self._options: AskOptions | None = None
        self._documents: dict[str, Document] = {}

    def open(self, control: Control, *, download: bool) -> Opened:
        settings = self._settings
        documents = self._read_files(settings.files, control)
        control.emit(Began("looking", settings.model))
        self._fetch(control, download)
        from ..session import AskOptions, Session

        began = False

        def progress(event: Progress) -> None:
            nonlocal began
            if not began:
                control.emit(Began("loading", settings.model))
            began = True
            control.emit(Advanced("loading", event.done, event.total))

        session = Session.open(
            settings.model,
            settings.config,
            documents=documents,
            progress=progress,
            keeping=self._keeping(),
        )
        session.set_system(settings.system)
        self._session = session
        self._options = AskOptions(
            max_new_tokens=settings.max_new_tokens,
            sampling=session.sampling(**settings.sampling),
            stop=settings.stop,
            ignore_eos=settings.ignore_eos,
        )
        self._measure(control, 0)
        return Opened(model=session.name, max_tokens=session.max_tokens, device=session.device.type)

    def read_documents(self, control: Control) -> None:
        session = self._opened()
        if not self._documents:
            return
        control.emit(Began("prefilling"))
        for event in session.read_documents():
            self._pass_on_stop(control)
            control.emit(Advanced("prefilling", event.done, event.total))
            self._measure(control, 0)

    def set_documents(self, paths: Sequence[str], control: Control) -> None:
        session = self._opened()
        before = self._documents
        documents = self._read_files(paths, control)
        try:
            session.set_documents(documents)
        except Exception:
            self._documents = before
            self._tell_documents(control)
            raise
        self.read_documents(control)

    def ask(self, question: str, control: Control) -> Answer:
        from ..generate import Piece, Progress
        from ..session import Reply

        session = self._opened()
        written = 0
        measured = time.monotonic()
        for event in session.ask(question, self._options):
            self._pass_on_stop(control)
            match event:
                case Progress(_, done, total):
                    control.emit(Advanced("prefilling", done, total))
                case Piece(text):
                    written += 1
                    control.emit(Wrote(text))
                    if time.monotonic() - measured >= MEASURE_SECONDS:
                        measured = time.monotonic()
                        self._measure(control, written)
                case Reply():
                    self._measure(control, event.generated_tokens)
                    return _answer(event)
        raise AssertionError("an answer ends with a Reply")

    def set_turns(self, turns: Sequence[Turn]) -> None:
        from ..chat import Message

        self._opened().set_messages(
            [
                Message(role, text)
                for turn in turns
                for role, text in (("user", turn.question), ("assistant", turn.answer))
            ]
        )

    def stop(self) -> None:
        if self._session is not None:
            self._session.stop()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _fetch(self, control: Control, download: bool) -> None:
        """Downloads the model when that is wanted; raises NeedsDownload when it is needed."""
        from ..hub import cache_folder, missing_bytes, resolve_model

        name, config = self._settings.model, self._settings.config
        if not download:
            needed = missing_bytes(name, revision=config.revision, offline=config.offline)
            if needed:
                folder = cache_folder()
                raise NeedsDownload(
                    Download(
                        model=name,
                        total_bytes=needed,
                        free_bytes=free_bytes(folder),
                        folder=folder,
                    )
                )
            return

        def received(done: int, total: int) -> None:
            if control.stopped:
                raise Interrupted("the download was paused; what is here is kept")
            control.emit(Advanced("downloading", done, total))

        control.emit(Began("downloading", name))
        resolve_model(name, revision=config.revision, received=received)

    def _opened(self) -> Session:
        if self._session is None:
            raise UsageError("no model is open; try again, or choose another one with -m")
        return self._session

    def _pass_on_stop(self, control: Control) -> None:
        """A session forgets a stop that came before it began; the control does not."""
        if control.stopped:
            self.stop()

    def _library(self) -> Library | None:
        from ..library import Library

        return Library() if self._settings.store else None

    def _keeping(self) -> Keeping | None:
        from ..shelf import Keeping

        library = self._library()
        if library is None:
            return None
        return Keeping(library=library, corpus=self._settings.corpus)

    def _read_files(self, paths: Sequence[str], control: Control) -> list[Document]:
        from ..shelf import corpus_documents, document_of

        library, known = self._library(), self._documents
        documents = {}
        if self._settings.corpus is not None and library is not None:
            documents = {
                found.name: found for found in corpus_documents(library, self._settings.corpus)
            }
        for path in paths:
            if path not in known:
                control.emit(Began("reading", path))
            documents[path] = known.get(path) or document_of(
                path, self._settings.extraction, library
            )
        self._documents = documents
        self._tell_documents(control)
        return list(documents.values())

    def _tell_documents(self, control: Control) -> None:
        control.emit(
            DocumentsRead(tuple(_facts(path, found) for path, found in self._documents.items()))
        )

    def _measure(self, control: Control, generated: int) -> None:
        found = self._opened().statistics()
        cache = None
        if found is not None:
            cache = CacheFigures(
                kind=found.kind,
                tokens=found.tokens,
                steady_tokens=found.steady_tokens,
                clusters=found.clusters,
                retrieved_tokens=found.retrieved_tokens,
                cache_bytes=found.bytes,
                index_bytes=found.index_bytes,
                bytes_per_step=found.bytes_per_step,
                mass_exact=found.mass_exact,
                mass_estimated=found.mass_estimated,
                hit_ratio=found.hit_ratio,
                slow_bytes=found.slow_bytes,
            )
        control.emit(Measured(cache, _memory(self._opened()), generated))


def free_bytes(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _memory(session: Session) -> tuple[Meter, ...]:
    import psutil
    import torch

    machine = psutil.virtual_memory()
    meters = [Meter("RAM", machine.total - machine.available, machine.total)]
    if session.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(session.device)
        meters.insert(0, Meter("GPU", total - free, total))
    return tuple(meters)


def _facts(path: str, document: Document) -> DocumentFacts:
    return DocumentFacts(
        name=document.name,
        text=document.text,
        path=path,
        pages=tuple((page.number, page.start) for page in document.pages),
        notes=document.notes,
    )


def _answer(reply: Reply) -> Answer:
    return Answer(
        text=reply.text,
        stop_reason=reply.stop_reason,
        prompt_tokens=reply.prompt_tokens,
        prefill_tokens=reply.prefill_tokens,
        prefill_seconds=reply.prefill_seconds,
        generated_tokens=reply.generated_tokens,
        generate_seconds=reply.generate_seconds,
        tokens_per_second=reply.decode_tokens_per_second,
        sources=tuple(
            Source(
                document=source.document,
                page=source.page,
                start=source.start,
                end=source.end,
                text=source.text,
                mass=source.mass,
            )
            for source in reply.sources
        ),
    )
