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
from typing import Literal, cast

import torch
from torch import Tensor

from .caches import AnyCache, layer_caches
from .chat import ChatTemplate, Message, generation_defaults
from .config import (
    CacheKind,
    Device,
    DtypeName,
    PrefillKind,
    SamplingConfig,
    Scheme,
    SessionConfig,
    StoreType,
    WaveConfig,
)
from .context import Context
from .conversation import Conversation, Prompter
from .device import choose_dtype, open_device
from .device_graph import stepping
from .errors import ContextError, UsageError
from .generate import End, Piece, Progress, generate_tokens, stream_text
from .head import Heads
from .hub import resolve_model
from .ingest.document import Document
from .ingest.extract import read_document
from .memory import MemoryEstimate, estimate, require
from .models.config import read_config
from .models.decoder import Decoder
from .models.weights import checkpoint_bytes, checkpoint_dtype, load_decoder
from .provenance import identity
from .reply import AskOptions as AskOptions
from .reply import Event as Event
from .reply import Reply as Reply
from .sampling import make_sampler
from .shelf import Keeping, Shelf
from .sources import read_from
from .statistics import CacheStatistics, combine
from .tokenizer import StreamDecoder, Tokenizer
from .wave.zones import piece_end


def load(
    model: str = "builtin",
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    cache: str = "auto",
    scheme: str = "wave",
    budget: float | Literal["auto"] = "auto",
    prefill: str = "auto",
    store_type: str = "bf16",
    ctx_size: int = 0,
    batch_size: int = 8192,
    threads: int = 0,
    revision: str | None = None,
    offline: bool = False,
) -> Session:
    """Opens a model: a folder, a Hub id (`org/name[@revision]`) or `builtin`.

    The settings are those of `SessionConfig` and `WaveConfig`; raises UsageError for a value that
    makes no sense and what `Session.open` raises.
    """
    config = SessionConfig(
        device=cast(Device, device),
        dtype=cast(DtypeName, str(dtype).removeprefix("torch.")),
        cache=cast(CacheKind, cache),
        wave=WaveConfig(
            scheme=cast(Scheme, scheme),
            budget=None if budget == "auto" else budget,
            store_type=cast(StoreType, store_type),
        ),
        prefill=cast(PrefillKind, prefill),
        ctx_size=ctx_size,
        batch_size=batch_size,
        threads=threads,
        revision=revision,
        offline=offline,
    )
    return Session.open(str(model), config)


class Session:
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
    ) -> None:
        self.name = name
        self.config = config
        self.model_config = read_config(folder)
        if config.ctx_size > self.model_config.max_positions:
            raise ContextError(
                f"--ctx-size is {config.ctx_size:,} and {name} has positions for "
                f"{self.model_config.max_positions:,}: give at most that many"
            )
        self.tokenizer = Tokenizer.open(folder)
        self.device = open_device(config)
        stored = checkpoint_dtype(folder, self.model_config)
        self.dtype = choose_dtype(config, stored, self.device)
        self._weight_bytes = checkpoint_bytes(folder) * self.dtype.itemsize // stored.itemsize
        eos = _known(self.tokenizer, self.tokenizer.eos_token)
        self._defaults = generation_defaults(folder, stop_ids=eos)
        self._end_ids = self._defaults.stop_ids
        self._prompter = Prompter(self.tokenizer, ChatTemplate.open(folder, self.tokenizer))
        self._conversation = Conversation(tuple(documents))
        self._context: Context | None = None
        self._files: tuple[str, ...] | None = None
        self._file_documents: tuple[Document, ...] = ()
        self._file_context: Context | None = None
        self._stopped = False
        self._decoder: Decoder | None = None
        self._stepping = stepping(self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self._shelf: Shelf | None = None
        if keeping is not None:
            made = identity(folder, self.model_config, config, self.dtype, self.device)
            self._shelf = Shelf(keeping, made, any_prefill=config.prefill == "auto")
        self._heads = Heads(self._prompter, self._shelf)
        self._require_room(documents)
        began = time.monotonic()
        self._decoder = load_decoder(
            folder,
            self.model_config,
            dtype=self.dtype,
            device=self.device,
            progress=lambda done, total: progress(Progress("load", done, total)),
        )
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
    ) -> Session:
        """Finds the model, checks that it and the documents fit, loads it.

        With `keeping`, documents that were read before are not read again, and what is read now is
        kept. Raises ModelError, TokenizerError, ContextError, MemoryLimitError or LibraryError,
        before the weights are read wherever that can be known.
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
        )

    @property
    def max_tokens(self) -> int:
        """Tokens that a context may have."""
        limit = self.model_config.max_positions
        return min(self.config.ctx_size, limit) if self.config.ctx_size else limit

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
        self._context = None

    def statistics(self) -> CacheStatistics | None:
        """The figures of the conversation's caches, also while it is answered; None before."""
        caches = () if self._context is None else self._context.caches
        return combine(cache.statistics() for cache in caches) if caches else None

    @property
    def documents_kept(self) -> bool:
        """Whether the library has the documents as this session would read them."""
        return self._heads.of(self._conversation.documents).kept

    def documents_estimate(self) -> tuple[int, MemoryEstimate]:
        """Tokens of the documents, and what reading them takes beside the weights."""
        head = self._heads.of(self._conversation.documents)
        return len(head.ids), self._estimate(len(head.ids), weight_bytes=0)

    def read_documents(self) -> Iterator[Progress]:
        """Reads the documents ahead; raises Interrupted when stopped, goes on next time."""
        self._stopped = False
        yield from self._read_head(self._conversation_context(), self._conversation.documents)

    def ask(self, prompt: str, options: AskOptions | None = None) -> Iterator[Event]:
        """Continues the conversation; yields Progress, Piece ... and at last one Reply.

        Raises ContextError, before anything is read, when the prompt does not fit, and Interrupted
        when `stop` was called while the prompt was read; the question then is not part of the
        conversation. A stopped answer is.
        """
        messages = (*self._conversation.messages, Message("user", prompt))
        asked = replace(self._conversation, messages=messages)
        context = self._conversation_context()
        for event in self._answer(context, asked, options or AskOptions()):
            if isinstance(event, Reply):
                reply = Message("assistant", event.text)
                self._conversation = replace(asked, messages=(*messages, reply))
            yield event

    def stream(
        self,
        prompt: str,
        files: Sequence[str | Path] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        options: AskOptions | None = None,
    ) -> Iterator[Event]:
        """Answers one question about some files outside the conversation; events as of `ask`.

        The files stay read: the next question about the same ones reads only itself.
        `max_new_tokens` and `temperature`, when given, win over `options`.
        """
        options = options or AskOptions()
        if max_new_tokens is not None:
            options = replace(options, max_new_tokens=max_new_tokens)
        if temperature is not None:
            sampling = options.sampling or self.sampling()
            options = replace(options, sampling=replace(sampling, temperature=temperature))
        names = tuple(str(file) for file in files)
        if names != self._files:
            self._files, self._file_context = None, None
            self._file_documents = tuple(read_document(file) for file in files)
            self._require_room(self._file_documents)
            self._files = names
        conversation = Conversation(self._file_documents, None, (Message("user", prompt),))
        if self._file_context is None:
            self._file_context = self._new_context(conversation)
        yield from self._answer(self._file_context, conversation, options)

    def generate(
        self,
        prompt: str,
        files: Sequence[str | Path] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        options: AskOptions | None = None,
    ) -> str:
        """The text of `stream`."""
        events = self.stream(
            prompt, files, max_new_tokens=max_new_tokens, temperature=temperature, options=options
        )
        return "".join(event.text for event in events if isinstance(event, Piece))

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Next-token logits at every position, float32 [T, vocab], with fresh caches.

        Raises UsageError for no ids or an id outside the vocabulary, ContextError for more tokens
        than positions.
        """
        vocabulary = self.model_config.vocab_size
        wrong = next((t for t in token_ids if not 0 <= t < vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} is outside the vocabulary of {vocabulary:,}")
        if len(token_ids) == 0:
            raise UsageError("no token ids were given; give at least one")
        self._require_positions(len(token_ids))
        caches = self._caches()
        ids = torch.tensor(list(token_ids), device=self.device)
        positions = torch.arange(len(token_ids), device=self.device)
        step = self.config.batch_size
        chunks = zip(torch.split(ids, step), torch.split(positions, step), strict=True)
        decoder = self._open_decoder()
        return torch.cat([decoder(c, at, caches, c.shape[0]) for c, at in chunks])

    def stop(self) -> None:
        """Ends the running answer soon; the next question starts as usual."""
        self._stopped = True

    def close(self) -> None:
        """Gives the caches and the weights back; a closed session answers nothing more."""
        self._context = self._file_context = self._files = None
        self._file_documents = ()
        self._heads.forget()
        self._decoder, self._stepping = None, stepping(self.device)
        if self._shelf is not None:
            self._shelf.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise UsageError("the session is closed; open a new one")
        return self._decoder

    def _caches(self, expected: int = 0) -> list[AnyCache]:
        return layer_caches(
            self.model_config, self.config, self.dtype, self.device, expected=expected
        )

    def _conversation_context(self) -> Context:
        if self._context is None:
            self._context = self._new_context(self._conversation)
        return self._context

    def _new_context(self, conversation: Conversation) -> Context:
        head = self._heads.of(conversation.documents)
        return Context(
            self._open_decoder(),
            self._caches(expected=len(head.ids)),
            head.ids,
            chunk_tokens=self.config.batch_size,
            device=self.device,
            stopped=lambda: self._stopped,
            piece_end=lambda tokens: piece_end(tokens, self.config.wave),
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
            expected_bytes=self._estimate(len(head.ids), weight_bytes=0).cache,
        )

    def _answer(
        self, context: Context, conversation: Conversation, options: AskOptions
    ) -> Iterator[Event]:
        self._stopped = False
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
        drawn: list[int] = []
        text, end = "", None
        try:
            for event in self._stream(context, logits, new_ids, drawn, options):
                if isinstance(event, End):
                    end = event
                    break
                text += event.text
                yield event
        finally:
            if end is None or end.reason == "stop":
                context.go_back(before_reply)
        assert end is not None, "a stream of text ends with End"
        if end.reason != "stop":
            context.keep_reply(drawn, text, ended=end.reason == "eos")
        yield Reply(
            text=text,
            stop_reason=end.reason,
            prompt_tokens=prompt_tokens,
            prefill_tokens=context.read_tokens - read_before,
            prefill_seconds=prefill_seconds,
            generated_tokens=end.tokens,
            generate_seconds=time.monotonic() - began - prefill_seconds,
            cache=combine(cache.statistics() for cache in context.caches),
            sources=read_from(context, self._heads.of(conversation.documents)),
        )

    def _stream(
        self,
        context: Context,
        logits: Tensor,
        prompt_ids: Sequence[int],
        drawn: list[int],
        options: AskOptions,
    ) -> Iterator[Piece | End]:
        """The reply as text; every id drawn is added to `drawn`."""
        for cache in context.caches:
            cache.reset_statistics()
        sampler = make_sampler(options.sampling or self.sampling(), prompt_ids)
        blocked = torch.tensor(
            sorted(self._end_ids) if options.ignore_eos else [], dtype=torch.long
        )
        blocked = blocked.to(self.device)

        def draw(logits: Tensor) -> int:
            token = sampler(logits.index_fill(0, blocked, -torch.inf))
            drawn.append(token)
            return token

        tokens = generate_tokens(
            self._stepping(self._open_decoder()),
            context.caches,
            logits,
            context.tokens,
            draw=draw,
            max_new_tokens=self._limit(options.max_new_tokens, context.tokens),
        )
        return stream_text(
            tokens,
            StreamDecoder(self.tokenizer, continuing=not self._prompter.has_template),
            end_ids=() if options.ignore_eos else self._end_ids,
            stop_strings=options.stop,
            stopped=lambda: self._stopped,
        )

    def _limit(self, max_new_tokens: int | None, prompt_tokens: int) -> int:
        room = self.max_tokens - prompt_tokens
        if max_new_tokens is None:
            max_new_tokens = self._defaults.max_new_tokens
        return room if max_new_tokens is None or max_new_tokens < 0 else min(max_new_tokens, room)

    def _require_positions(self, tokens: int) -> None:
        if tokens <= self.max_tokens:
            return
        what = f"the prompt, documents included, needs {tokens:,} tokens"
        if self.max_tokens < self.model_config.max_positions:
            raise ContextError(f"{what} and --ctx-size is {self.max_tokens:,}: raise it")
        raise ContextError(
            f"{what} and {self.name} has positions for {self.max_tokens:,}: "
            "give a shorter text or a model with a longer context"
        )

    def _require_room(self, documents: Sequence[Document]) -> None:
        """Refuses documents that are too long for the model or the memory."""
        head = self._heads.of(tuple(documents))
        if documents:
            self._require_positions(len(head.ids) + 1)
        # What is kept stays in its files, whose pages the system can take back.
        tokens = 0 if head.kept else len(head.ids)
        needed = self._estimate(
            tokens, weight_bytes=self._weight_bytes if self._decoder is None else 0
        )
        if self.device.type == "cpu":
            require(needed, model=self.name, tokens=tokens)

    def _estimate(self, tokens: int, *, weight_bytes: int) -> MemoryEstimate:
        return estimate(
            self.model_config,
            weight_bytes=weight_bytes,
            element_bytes=self.dtype.itemsize,
            tokens=tokens,
            chunk_tokens=self.config.batch_size,
            wave=None if self.config.cache == "dense" else self.config.wave,
        )


def _known(tokenizer: Tokenizer, token: str | None) -> frozenset[int]:
    number = None if token is None else tokenizer.token_id(token)
    return frozenset() if number is None else frozenset({number})
