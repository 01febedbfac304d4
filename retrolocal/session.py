"""A session: one model, its tokenizer, its caches and one conversation.

`open` reads what is small, says whether the rest fits, then loads the weights. `ask` continues the
conversation and yields events; `generate` and `stream` answer one question about some files and
leave the conversation alone; `logits` scores tokens with fresh caches. Not thread-safe, except
for `stop`, which a signal handler or another thread may call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .caches import AnyCache, layer_caches
from .chat import ChatTemplate, Message, generation_defaults
from .config import SamplingConfig, SessionConfig, session_config
from .context import Context, close
from .conversation import Conversation, Prompter, file_names
from .device import choose_dtype, open_device
from .device_graph import stepping
from .draft import Draft
from .errors import UsageError
from .generate import End, Piece, Progress, all_logits, generate_tokens, mark_thinking, stream_text
from .head import Heads
from .hub import resolve_model
from .ingest.document import Document
from .ingest.extract import read_document
from .library.closing import Closing
from .loading import open_decoder
from .memory import context_tokens, require_positions
from .models.config import read_config
from .models.decoder import Decoder
from .models.weights import checkpoint_dtype
from .provenance import Provenance
from .relief import Relief
from .reply import AskOptions, Event, Reply
from .room import Forecast, Room, size_in_bytes
from .shelf import Keeping, Shelf
from .sources import read_from
from .statistics import CacheStatistics, combine
from .tokenizer import StreamDecoder, Tokenizer
from .wave.tiers import Tiers
from .wave.zones import piece_end

__all__ = ["AskOptions", "Event", "Reply", "Session", "load"]


def load(
    model: str = "builtin",
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    cache: str = "auto",
    scheme: str = "wave",
    budget: float | Literal["auto"] = "auto",
    prefill: str = "auto",
    quant: str | None = None,
    store_type: str = "bf16",
    ctx_size: int = 0,
    batch_size: int = 8192,
    threads: int = 0,
    ram: int | str = 0,
    vram: int | str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Session:
    """Opens a model: a folder, a Hub id (`org/name[@revision]`) or `builtin`.

    The settings are those of `SessionConfig` and `WaveConfig` (`ram` and `vram` are bytes or "4G");
    clustered keys and values are kept as they come, where the command line rounds them to int8.
    Raises UsageError for a value that makes no sense and what `Session.open` raises.
    """
    config = session_config(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        cache=cache,
        scheme=scheme,
        budget=None if budget == "auto" else budget,
        store_type=store_type,
        prefill=prefill,
        quant=quant or "none",
        ctx_size=ctx_size,
        batch_size=batch_size,
        threads=threads,
        ram=size_in_bytes("ram", ram),
        vram=None if vram is None else size_in_bytes("vram", vram) / 2**30,
        revision=revision,
        offline=offline,
    )
    return Session.open(str(model), config)


class Session(Closing):
    """Made by `Session.open` or `retrolocal.load`."""

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        config: SessionConfig,
        documents: Sequence[Document],
        progress: Callable[[Progress], None],
        keeping: Keeping | None,
        notice: Callable[[str], None],
    ) -> None:
        self.name = name
        self.config = config
        self.model_config = read_config(folder, ctx_size=config.ctx_size)
        self.max_tokens = context_tokens(
            config.ctx_size, self.model_config.max_positions, model=name
        )
        """That a context may have."""
        self.tokenizer = Tokenizer.open(folder)
        self.device = open_device(config)
        self.dtype = choose_dtype(config, checkpoint_dtype(folder, self.model_config), self.device)
        self._room = Room(
            name=name,
            model=self.model_config,
            config=config,
            dtype=self.dtype,
            device=self.device,
            keeps=keeping is not None,
        )
        self._defaults = generation_defaults(folder, stop_ids=self.tokenizer.end_ids)
        self._prompter = Prompter(self.tokenizer, ChatTemplate.open(folder, self.tokenizer))
        self._conversation = Conversation(tuple(documents))
        self._context: Context | None = None
        self._files: tuple[str, ...] | None = None
        self._file_documents: tuple[Document, ...] = ()
        self._file_context: Context | None = None
        self._stopped = False
        self._decoder: Decoder | None = None
        self._relief = Relief(config.batch_size, notice)
        self._stepping = stepping(self.device, self._relief)
        if config.threads:
            torch.set_num_threads(config.threads)
        self._shelf: Shelf | None = None
        if keeping is not None:
            self._room.announce_measuring(notice)
            made = Provenance(folder, self.model_config, config, self.dtype, self.device)
            self._shelf = Shelf(keeping, made)
        self._heads = Heads(self._prompter, self._shelf)
        self._require_room(documents)
        began = time.monotonic()
        self._decoder = open_decoder(
            folder,
            self.model_config,
            dtype=self.dtype,
            device=self.device,
            quant=config.quant,
            progress=lambda done, total: progress(Progress("load", done, total)),
        )
        self._room.loaded = True
        self.load_seconds = time.monotonic() - began

    @classmethod
    def open(
        cls,
        model: str = "builtin",
        config: SessionConfig | None = None,
        *,
        documents: Sequence[Document] = (),
        progress: Callable[[Progress], None] = lambda event: None,
        keeping: Keeping | None = None,
        notice: Callable[[str], None] = lambda line: None,
    ) -> Session:
        """Finds the model, checks that it and the documents fit, loads it.

        With `keeping`, documents that were read before are not read again, and what is read now is
        kept; `notice` is told what takes long or changed to go on. Raises ModelError, ContextError,
        TokenizerError, LibraryError or MemoryLimitError, where possible before weights are read.
        """
        config = config or SessionConfig()
        folder = resolve_model(model, revision=config.revision, offline=config.offline)
        return cls(
            name=model,
            folder=folder,
            config=config,
            documents=documents,
            progress=progress,
            keeping=keeping,
            notice=notice,
        )

    def sampling(self, **changes: float | None) -> SamplingConfig:
        """The model's own sampling settings, with those given (not None) in their place."""
        given = {name: value for name, value in changes.items() if value is not None}
        return SamplingConfig(**{**self._defaults.sampling, **given})

    def set_system(self, text: str | None) -> None:
        """System text of the conversation; it stands after the documents."""
        self._conversation = replace(self._conversation, system=text)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Questions and replies of the conversation so far."""
        return self._conversation.messages

    def set_messages(self, messages: Sequence[Message]) -> None:
        """The conversation goes on from these; what the caches hold of them is not read again."""
        self._conversation = replace(self._conversation, messages=tuple(messages))

    def set_documents(self, documents: Sequence[Document]) -> None:
        """The conversation is about these now; raises ContextError or MemoryLimitError."""
        self._require_room(documents)
        self._conversation = replace(self._conversation, documents=tuple(documents))
        self._begin_again()

    def statistics(self) -> CacheStatistics | None:
        """The figures of the conversation's caches, also while it is answered; None before."""
        caches = () if self._context is None else self._context.caches
        return combine(cache.statistics() for cache in caches) if caches else None

    def first_time(self) -> str | None:
        """What will take longer with these documents, once on this machine."""
        return self._room.first_time(self._heads.of(self._conversation.documents))

    def documents_estimate(self) -> Forecast:
        """What reading the documents takes, beside what the library has of them."""
        head = self._heads.of(self._conversation.documents)
        return self._room.forecast(head, self._heads.known_tokens(head))

    def read_documents(self) -> Iterator[Progress]:
        """Reads the documents ahead; raises Interrupted when stopped, goes on next time."""
        self._stopped = False
        yield from self._read_head(self._conversation_context(), self._conversation.documents)

    def keep_dialogue(self, path: Path) -> bool:
        """Writes what the caches hold of the conversation to `path`: `Shelf.keep_dialogue`."""
        if self._shelf is None or self._context is None:
            return False
        return self._shelf.keep_dialogue(self._context, self._conversation.documents, path)

    def open_dialogue(self, path: Path) -> bool:
        """The messages of now need not be read, if `path` has them: `Shelf.load_dialogue`."""
        if self._shelf is None:
            return False
        context, documents = self._new_context(self._conversation), self._conversation.documents
        going_on = self._prompter.dialogue(self._conversation.asked("?"))
        try:
            if self._shelf.load_dialogue(context, documents, path, going_on):
                self._context, context = context, self._context
                return True
            return False
        finally:
            close(context)

    def forget_dialogue(self) -> None:
        """The caches hold the documents alone, for a conversation not in them. Messages stay."""
        if self._context is not None and not self._context.forget_dialogue():
            self._begin_again()

    def ask(self, prompt: str, options: AskOptions | None = None) -> Iterator[Event]:
        """Continues the conversation; yields Progress, Piece ... and at last one Reply.

        Raises ContextError, before anything is read, when the prompt does not fit, and Interrupted
        when `stop` was called while the prompt was read; the question then is not part of the
        conversation. A stopped answer is. Where a kept text turns out to be damaged, what is
        damaged of it is read again and the answer goes on.
        """
        asked, options = self._conversation.asked(prompt), options or AskOptions()
        self._stopped = False
        draft = Draft(lambda: self._heads.distrusted(asked.documents), self._begin_again)
        if self._context is not None and (
            self._heads.distrusted(asked.documents)
            or not self._context.leads_to(self._prompter.dialogue(asked))
        ):
            # What it was loaded from is damaged; or it was reopened, and another dialogue goes on.
            self._begin_again()
        for event in draft.events(
            lambda: self._answer(self._conversation_context(), asked, options, draft)
        ):
            if isinstance(event, Reply):
                reply = Message("assistant", event.text)
                self._conversation = replace(asked, messages=(*asked.messages, reply))
            yield event

    def stream(
        self,
        prompt: str,
        files: str | Path | Sequence[str | Path] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        options: AskOptions | None = None,
    ) -> Iterator[Event]:
        """Answers one question about some files outside the conversation; events as of `ask`.

        The files stay read: the next question about the same ones reads only itself.
        `max_new_tokens` and `temperature`, when given, win over `options`.
        """
        options = (options or AskOptions()).changed(max_new_tokens, temperature, self.sampling)
        question, names = Message("user", prompt), file_names(files)
        if names != self._files or self._heads.distrusted(self._file_documents):
            self._forget_files()
            self._file_documents = tuple(map(read_document, names))
            self._require_room(self._file_documents)
            self._files = names
        conversation = Conversation(self._file_documents, None, (question,))
        self._stopped = False
        draft = Draft(lambda: self._heads.distrusted(conversation.documents), self._forget_files)

        def attempt() -> Iterator[Event]:
            self._file_context = self._file_context or self._new_context(conversation)
            return self._answer(self._file_context, conversation, options, draft)

        yield from draft.events(attempt)

    def generate(
        self,
        prompt: str,
        files: str | Path | Sequence[str | Path] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        options: AskOptions | None = None,
    ) -> str:
        """The text of `stream`, without the block of thinking that it may begin with."""
        events = self.stream(
            prompt, files, max_new_tokens=max_new_tokens, temperature=temperature, options=options
        )
        return "".join(one.text for one in events if isinstance(one, Piece) and not one.thinking)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Next-token logits at every position, float32 [T, vocab], with fresh caches.

        Raises UsageError for no ids, what is none, or one outside the vocabulary, ContextError for
        more tokens than positions.
        """
        self._require_positions(len(token_ids))
        return all_logits(
            self._open_decoder(),
            self._caches(),
            token_ids,
            vocabulary=self.model_config.vocab_size,
            chunk_tokens=self.config.batch_size,
            device=self.device,
        )

    def stop(self) -> None:
        """Ends the running answer soon; the next question starts as usual."""
        self._stopped = True

    def close(self) -> None:
        """Gives the caches and the weights back; a closed session answers nothing more."""
        self._begin_again()
        self._forget_files()
        self._file_documents = ()
        self._heads.forget()
        self._decoder, self._stepping = None, stepping(self.device, self._relief)
        if self._shelf is not None:
            self._shelf.close()

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise UsageError("the session is closed; open a new one")
        return self._decoder

    def _caches(self, expected: int = 0, tiers: Tiers | None = None) -> list[AnyCache]:
        made_with = (self.model_config, self.config, self.dtype, self.device)
        return layer_caches(*made_with, expected=expected, tiers=tiers, tell=self._relief.tell)

    def _conversation_context(self) -> Context:
        if self._context is None:
            self._context = self._new_context(self._conversation)
        return self._context

    def _new_context(self, conversation: Conversation) -> Context:
        head = self._heads.of(conversation.documents)
        tiers = self._room.tiers(head)
        chunk_tokens = self.model_config.chunk_tokens
        return Context(
            self._open_decoder(),
            self._caches(expected=len(head.ids), tiers=tiers),
            head.ids,
            chunk_tokens=self.config.batch_size,
            device=self.device,
            stopped=lambda: self._stopped,
            piece_end=lambda tokens: piece_end(tokens, self.config.wave, chunk_tokens),
            closing=(lambda: None) if tiers is None else tiers.close,
            relief=self._relief,
        )

    def _read_head(
        self, context: Context, documents: tuple[Document, ...]
    ) -> Generator[Progress, None, None]:
        if self._shelf is None or not documents:
            yield from context.read_head()
            return
        head = self._heads.of(documents)
        yield from self._shelf.read(
            context,
            documents,
            opening=head.opening,
            page_map=head.places.tobytes,
            expected_bytes=lambda known: self._room.disk_bytes(head, known),
        )

    def _answer(
        self, context: Context, conversation: Conversation, options: AskOptions, draft: Draft
    ) -> Iterator[Event]:
        began, read_before = time.monotonic(), context.read_tokens
        dialogue = self._prompter.dialogue(conversation)
        beginning = context.head_tokens == 0
        whole = self._prompter.dialogue_ids(dialogue, beginning=beginning)
        self._require_positions(context.head_tokens + len(whole) + 1)
        yield from self._read_head(context, conversation.documents)
        rest = context.rewind_to(dialogue)
        new_ids = self._prompter.dialogue_ids(rest, beginning=beginning and context.tokens == 0)
        logits = yield from context.read(new_ids, dialogue)
        before_reply, prompt_tokens = context.here(), context.tokens
        prefill_seconds = time.monotonic() - began
        text, block, begun, end = "", "", self._prompter.begun(dialogue), None
        events = self._stream(context, logits, new_ids, draft, options)
        try:
            for event in mark_thinking(events, begun):
                if isinstance(event, End):
                    end = event
                    break
                text += event.text
                block += event.text if event.thinking else ""
                yield event
        finally:
            if end is None or end.reason == "stop":
                context.go_back(before_reply)
        assert end is not None, "a stream of text ends with End"
        if end.reason != "stop":
            context.keep_reply(draft.drawn, text.removeprefix(begun), ended=end.reason == "eos")
        yield Reply(
            text=text,
            stop_reason=end.reason,
            prompt_tokens=prompt_tokens,
            prefill_tokens=context.read_tokens - read_before,
            prefill_seconds=prefill_seconds,
            generated_tokens=end.tokens,
            generate_seconds=time.monotonic() - began - prefill_seconds,
            cache=combine(cache.statistics() for cache in context.caches),
            sources=read_from(context, self._heads.of(conversation.documents))
            if options.sources
            else (),
            thinking=block,
        )

    def _stream(
        self,
        context: Context,
        logits: Tensor,
        prompt_ids: Sequence[int],
        draft: Draft,
        options: AskOptions,
    ) -> Iterator[Piece | End]:
        """The reply as text; its ids are those of `draft`."""
        for cache in context.caches:
            cache.reset_statistics()
        sampler = draft.sampler(options.sampling or self.sampling(), prompt_ids)
        ends = sorted(self._defaults.stop_ids) if options.ignore_eos else []
        blocked = torch.tensor(ends, dtype=torch.long, device=self.device)
        tokens = generate_tokens(
            self._stepping(self._open_decoder()),
            context.caches,
            logits,
            context.tokens,
            draw=lambda row: draft.draw(lambda: sampler(row.index_fill(0, blocked, -torch.inf))),
            max_new_tokens=options.limit(
                self._defaults.max_new_tokens, room=self.max_tokens - context.tokens
            ),
        )
        return stream_text(
            tokens,
            StreamDecoder(self.tokenizer, continuing=not self._prompter.has_template),
            end_ids=() if options.ignore_eos else self._defaults.stop_ids,
            stop_strings=options.stop,
            stopped=lambda: self._stopped,
        )

    def _begin_again(self) -> None:
        """The conversation's next question has a context of its own."""
        context, self._context = self._context, None
        close(context)

    def _forget_files(self) -> None:
        """So has the next one about files."""
        context, self._file_context, self._files = self._file_context, None, None
        close(context)

    def _require_positions(self, tokens: int) -> None:
        require_positions(tokens, self.max_tokens, self.model_config.max_positions, model=self.name)

    def _require_room(self, documents: Sequence[Document]) -> None:
        """Refuses documents that are too long for the model or the memory."""
        head = self._heads.of(tuple(documents))
        self._require_positions(len(head.ids) + bool(documents))
        self._room.require(head)
