"""What the interface asks of an engine, and what an engine tells it.

Everything crosses here as plain frozen values, so that the screens can be built and tested
without a model. `SessionEngine` is the real one. An engine calls `Control.emit` from the thread
it runs on; whatever it does not know it does not send, and the screen then shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from ..errors import RetrolocalError
from ..outcome import Source as Source
from ..outcome import StopReason as StopReason

Counted = Literal["downloading", "loading", "prefilling"]
"""Stages whose end is known in bytes or tokens."""
Stage = Literal[
    "looking", "reading", "tokenising", "downloading", "loading", "prefilling", "compiling"
]
"""What is done before an answer begins; `compiling` happens once per machine."""


@dataclass(frozen=True, slots=True)
class Began:
    """A stage has begun; the one before is done."""

    stage: Stage
    about: str = ""
    """A file or a model, as its owner named it."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """How far a stage is."""

    work: Counted
    done: int
    total: int
    """Bytes of a download or of weights, tokens of a prefill; 0 when not known."""


@dataclass(frozen=True, slots=True)
class Wrote:
    """The answer goes on with this text, which may begin with a block of thinking."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentFacts:
    """A document that is part of the context or is becoming so."""

    name: str
    text: str
    path: str
    pages: tuple[tuple[int, int], ...] = ()
    """Number and first character of each page; empty where there are none."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentsRead:
    """All documents of the context, in its order."""

    documents: tuple[DocumentFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFigures:
    """What the caches did since the answer began; see `retrolocal.statistics`."""

    kind: str
    tokens: int
    steady_tokens: int
    clusters: int
    retrieved_tokens: float
    cache_bytes: int
    index_bytes: int
    bytes_per_step: float
    mass_exact: float
    mass_estimated: float
    hit_ratio: float | None = None
    """Share of the fetched clusters that the block cache held; None without a block cache."""
    slow_bytes: float | None = None
    """Bytes that came from the slow tier, per step; None where there is no block cache."""


@dataclass(frozen=True, slots=True)
class Meter:
    """A quantity with a limit, in bytes."""

    name: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of this moment; sent a few times a second."""

    cache: CacheFigures | None
    memory: tuple[Meter, ...]
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Remarked:
    """One line that the user should know: what could not be kept, what there was no room for."""

    text: str


Event = Began | Advanced | Wrote | DocumentsRead | Measured | Remarked


PREDICT = "max_new_tokens"
"""Stands beside the fields of SamplingConfig: tokens of an answer at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What is ready to be asked."""

    model: str
    max_tokens: int
    device: str
    notes: tuple[str, ...] = ()
    answering: Mapping[str, float | None] = field(default_factory=dict)
    """Fields of SamplingConfig, and PREDICT, with what answers are made with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished or stopped answer."""

    text: str
    stop_reason: StopReason
    prompt_tokens: int
    prefill_tokens: int
    prefill_seconds: float
    generated_tokens: int
    generate_seconds: float
    tokens_per_second: float
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and what was answered; how it ended makes no other turn of it."""

    question: str
    answer: str
    stop_reason: StopReason = field(default="eos", compare=False)
    sources: tuple[Source, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What has to be fetched before a model can be opened."""

    model: str
    total_bytes: int
    free_bytes: int
    folder: Path


class NeedsDownload(RetrolocalError):
    """The model is not on this machine; opening it again with `download` fetches it."""

    def __init__(self, download: Download) -> None:
        super().__init__(f"{download.model} is not on this machine and must be downloaded")
        self.download = download


class Control(Protocol):
    """The engine's way back while it works."""

    @property
    def stopped(self) -> bool:
        """Whether the work in hand shall end soon."""
        ...

    def emit(self, event: Event) -> None: ...


class Engine(Protocol):
    """A model, its documents and one conversation.

    One thread calls everything but `stop`, one call at a time. Every call may raise a
    RetrolocalError, among them Interrupted after `stop`; the engine is then what it was before,
    except that documents keep the part that was read.
    """

    def choose_files(self, paths: Sequence[str]) -> None:
        """`open` reads these files, and the corpus if there is one."""
        ...

    def open(self, control: Control, *, download: bool) -> Opened:
        """Finds and loads the model; raises NeedsDownload when it is not here.

        When a file cannot be read it first tells the documents that can.
        """
        ...

    def read_documents(self, control: Control) -> None:
        """Reads what is not read yet of the documents; goes on where it was stopped."""
        ...

    def set_documents(self, paths: Sequence[str], control: Control) -> None:
        """The conversation is about these files now."""
        ...

    def ask(self, question: str, control: Control) -> Answer: ...

    def change(self, answering: Mapping[str, float | None]) -> None:
        """The next answers are made with these; None is the model's own value."""
        ...

    def set_turns(self, turns: Sequence[Turn]) -> None:
        """The conversation consists of these turns now."""
        ...

    def keep(self, chat: Path) -> bool:
        """Writes what the caches hold of the turns to `chat`; False where there is no library."""
        ...

    def reopen(self, chat: Path) -> bool:
        """Takes up what was kept of the turns of now in `chat`: they need not be read again.

        False where nothing that fits was kept; the next question then reads the turns.
        """
        ...

    def forget(self) -> None:
        """The caches hold the documents alone: the turns of now are another conversation's."""
        ...

    def measure(self, control: Control) -> None:
        """Tells the figures of now."""
        ...

    def stop(self) -> None:
        """Ends the running call soon; may be called from any thread."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """What the interface itself is told when it starts."""

    model: str
    """The name to show until the model is open."""
    documents: tuple[str, ...] = ()
    corpus: str | None = None
    """Whose documents the conversation begins with."""
    mouse: bool = True
    notes: tuple[str, ...] = field(default=())
    """Lines to show at the beginning."""
    hides_thinking: bool = False
    """What a model thinks before it answers is not shown."""
    keeps_chats: bool = True
    keeps_log: bool = True
