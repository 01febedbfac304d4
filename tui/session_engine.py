"""The engine that is a Session: opens it, asks it, and turns its events into the interface's.

Everything heavy is imported when `open` is called, on the engine's thread: the first screen does
not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..chats import CORPUS, drop_oldest_caches
from ..config import SessionConfig
from ..errors import DocumentError, Interrupted, UsageError
from .engine import (
    PREDICT,
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
    Remarked,
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

    model: str | None
    """None: chosen among those that are here."""
    config: SessionConfig
    files: tuple[str, ...] = ()
    extraction: Callable[[], Options]
    """What was said about the files; called on the engine's thread, which imports the readers."""
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
        self._answering: dict[str, float | None] = {
            **settings.sampling,
            PREDICT: settings.max_new_tokens,
        }
        self._files = settings.files
        """Read when the model is opened."""
        self._documents: dict[str, Document] = {}
        self._read = self._to_read = 0
        """Tokens of the documents; 0 before they are counted."""
        self._control: Control | None = None
        """Of the call in hand, or of the last one."""
        self._compiles = False
        """Whether the first step through an index will be compiled, which takes a while."""

    def choose_files(self, paths: Sequence[str]) -> None:
        self._files = tuple(paths)

    def open(self, control: Control, *, download: bool) -> Opened:
        self._control = control
        settings = self._settings
        if settings.corpus is not None and not self._documents:
            self._documents = _corpus(settings.corpus)
        corpus = [path for path in self._documents if path.startswith(CORPUS)]
        documents = self._read_files((*corpus, *self._files), control)
        name, notes = self._choose()
        control.emit(Began("looking", name))
        self._fetch(name, control, download)
        from ..caches import index_note
        from ..device import device_note
        from ..kernels.compiled import to_compile
        from ..session import Session

        began = False

        def progress(event: Progress) -> None:
            nonlocal began
            if not began:
                control.emit(Began("loading", name))
            began = True
            control.emit(Advanced("loading", event.done, event.total))

        session = Session.open(
            name,
            settings.config,
            documents=documents,
            progress=progress,
            keeping=self._keeping(name),
            notice=self._remark,
        )
        session.set_system(settings.system)
        self._session = session
        self._compiles = to_compile(settings.config.cache)
        self._measure(control, 0)
        told = (device_note(settings.config), index_note(settings.config), session.first_time())
        notes = (*notes, *(note for note in told if note is not None))
        return Opened(
            model=session.name,
            max_tokens=session.max_tokens,
            device=session.device.type,
            answering={**self._answering, **asdict(session.sampling(**settings.sampling))},
            notes=notes,
        )

    def read_documents(self, control: Control) -> None:
        self._control = control
        session = self._opened()
        if not self._documents:
            return
        control.emit(Began("prefilling"))
        if self._to_read:
            control.emit(Advanced("prefilling", self._read, self._to_read))
        for event in session.read_documents():
            self._pass_on_stop(control)
            # A session counts what was missing when it was asked.
            self._to_read = self._to_read or event.total
            self._read = self._to_read - event.total + event.done
            control.emit(Advanced("prefilling", self._read, self._to_read))
            self._measure(control, 0)

    def set_documents(self, paths: Sequence[str], control: Control) -> None:
        self._control = control
        session = self._opened()
        before = self._documents
        documents = self._read_files(paths, control)
        try:
            session.set_documents(documents)
        except Exception:
            self._documents = before
            self._tell_documents(control)
            raise
        self._read = self._to_read = 0
        self.read_documents(control)

    def ask(self, question: str, control: Control) -> Answer:
        from ..generate import Piece, Progress
        from ..kernels.compiled import unkept_note
        from ..session import Reply

        self._control = control
        session = self._opened()
        written = 0
        measured = time.monotonic()
        for event in session.ask(question, self._options()):
            self._pass_on_stop(control)
            match event:
                case Progress(_, done, total):
                    control.emit(Advanced("prefilling", done, total))
                    if self._compiles and done == total and self._clustered():
                        control.emit(Began("compiling"))
                case Piece(text):
                    written += 1
                    control.emit(Wrote(text))
                    if time.monotonic() - measured >= MEASURE_SECONDS:
                        measured = time.monotonic()
                        self._measure(control, written)
                case Reply():
                    if (note := unkept_note()) is not None:
                        self._remark(note)
                    self._compiles = self._compiles and not self._clustered()
                    self._measure(control, event.generated_tokens)
                    return _answer(event)
        raise AssertionError("an answer ends with a Reply")

    def change(self, answering: Mapping[str, float | None]) -> None:
        self._answering |= answering

    def set_turns(self, turns: Sequence[Turn]) -> None:
        from ..chat import Message

        self._opened().set_messages(
            [
                Message(role, text)
                for turn in turns
                for role, text in (("user", turn.question), ("assistant", turn.answer))
            ]
        )

    def keep(self, chat: Path) -> bool:
        kept = self._opened().keep_dialogue(chat)
        # What cannot be deleted now can be deleted next time.
        with suppress(OSError):
            drop_oldest_caches(chat.parent)
        return kept

    def reopen(self, chat: Path) -> bool:
        return self._opened().open_dialogue(chat)

    def forget(self) -> None:
        self._opened().forget_dialogue()

    def measure(self, control: Control) -> None:
        self._measure(control, 0)

    def stop(self) -> None:
        if self._session is not None:
            self._session.stop()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _options(self) -> AskOptions:
        from ..session import AskOptions

        sampling = dict(self._answering)
        predict = sampling.pop(PREDICT)
        return AskOptions(
            max_new_tokens=None if predict is None else int(predict),
            sampling=self._opened().sampling(**sampling),
            stop=self._settings.stop,
            ignore_eos=self._settings.ignore_eos,
        )

    def _choose(self) -> tuple[str, tuple[str, ...]]:
        """The model to open, and lines about how it was chosen."""
        from ..default_model import default_model
        from ..device import gpu_bytes
        from ..hub import shadow_note

        if self._settings.model is None:
            chosen = default_model(
                gpu_bytes=gpu_bytes(self._settings.config), corpus=self._settings.corpus
            )
            return chosen.model, (chosen.note,)
        note = shadow_note(self._settings.model)
        return self._settings.model, () if note is None else (note,)

    def _fetch(self, name: str, control: Control, download: bool) -> None:
        """Downloads the model when that is wanted; raises NeedsDownload when it is needed."""
        from ..fetching import usable_with
        from ..hub import cache_folder, fetch, locate_model, retries_told
        from ..paths import disk_free

        config = self._settings.config
        with retries_told(self._remark):
            found = locate_model(name, revision=config.revision, offline=config.offline)
        if isinstance(found, Path):
            return
        if not download:
            folder = cache_folder()
            raise NeedsDownload(
                Download(
                    model=str(found.name),
                    total_bytes=found.missing_bytes,
                    free_bytes=disk_free(folder),
                    folder=folder,
                )
            )

        def received(done: int, total: int) -> None:
            if control.stopped:
                raise Interrupted("the download was paused; what is complete is kept")
            control.emit(Advanced("downloading", done, total))

        control.emit(Began("downloading", str(found.name)))
        with retries_told(self._remark):
            fetch(found, received=received, check=usable_with(name, config))

    def _clustered(self) -> bool:
        found = self._opened().statistics()
        return found is not None and found.clusters > 0

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

    def _remark(self, line: str) -> None:
        if self._control is not None:
            self._control.emit(Remarked(line))

    def _keeping(self, model: str) -> Keeping | None:
        from ..hub import lasting_name
        from ..shelf import Keeping

        library = self._library()
        if library is None:
            return None
        return Keeping(
            library=library,
            corpus=self._settings.corpus,
            grows=False,
            model=lasting_name(model, self._settings.config.revision),
            tell=self._remark,
        )

    def _read_files(self, paths: Sequence[str], control: Control) -> list[Document]:
        """The documents in this order; those of the conversation are not read again."""
        from ..ingest import given_once
        from ..shelf import document_of

        library, known = self._library(), dict(self._documents)
        documents = {}
        try:
            for path in given_once(paths, self._remark):
                if path not in known and path.startswith(CORPUS):
                    name = path.removeprefix(CORPUS).rpartition("#")[0]
                    known |= _corpus(name)
                    if path not in known:
                        raise DocumentError(f"the corpus {name} has not all documents it had; /new")
                if path not in known:
                    control.emit(Began("reading", path))
                    known[path] = document_of(path, self._settings.extraction(), library)
                documents[path] = known[path]
        except Exception:
            if self._session is None:
                self._documents = documents
                self._tell_documents(control)
            raise
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
                slow_bytes=None if found.hit_ratio is None else found.slow_bytes,
            )
        control.emit(Measured(cache, _memory(self._opened()), generated))


def _corpus(name: str) -> dict[str, Document]:
    """The documents of a corpus by what stands for their paths; raises LibraryError."""
    from ..library import Library
    from ..shelf import corpus_documents

    found = corpus_documents(Library(), name)
    return {f"{CORPUS}{name}#{number}": document for number, document in enumerate(found)}


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
        sources=reply.sources,
    )
