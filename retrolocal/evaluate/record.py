"""What the attention of a model really sees: keys and values of a document, queries of answers.

The model reads the document as a chat does, is asked to go on with quotations of it, and the
queries of the tokens that it writes are kept. Sliding windows are not recorded: nothing in them
is ever clustered.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..cache import DenseCache, RingCache
from ..chat import Message
from ..config import SessionConfig, WaveConfig
from ..context import Context
from ..conversation import Conversation
from ..errors import ModelError
from ..fidelity import require_clustered
from ..generate import Progress as Event
from ..generate import generate_tokens
from ..ingest.document import Document
from ..measurement import Progress
from ..memory import estimate, require
from ..session import Session

STEPS = 8
"""Tokens written, and read again, per question."""
WORDS = (12, 16)
"""Fewest and most words of a question."""
QUOTED_TOKENS = 64
"""Tokens that a question's words are taken from."""
LONGEST_QUESTION = 200
"""Characters; for texts whose words no spaces part."""


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer that keeps the whole context."""

    number: int
    q: Tensor
    """[S, Hq, D]: S steps, `STEPS` of each question."""
    k: Tensor
    """[Hkv, N, D], as they came; v likewise."""
    v: Tensor


class RecordingCache(DenseCache):
    """A dense cache that keeps the queries of single tokens while `recording`."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = False
        self.queries: list[Tensor] = []
        """[Hq, D] each."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """See `LayerCache.attend`."""
        if self.recording and q.shape[1] == 1:
            self.queries.append(q[:, 0].clone())
        return super().attend(q, k, v, positions)

    def record(self, number: int, tokens: int) -> LayerRecord:
        """Of layer `number`, with the keys and values of the first `tokens`."""
        k, v = self._buffer.view(0, tokens)
        return LayerRecord(number, torch.stack(self.queries), k, v)


class RecordingSession(Session):
    """A session that answers nothing but hands out what its layers see."""

    @classmethod
    def load(cls, model: str, config: SessionConfig) -> RecordingSession:
        """See `Session.open`. Raises ModelError for a model that forgets, too."""
        session = cast(RecordingSession, cls.open(model, config))
        if all(layer.window is not None for layer in session.model_config.layers):
            raise ModelError(
                f"{model} has sliding windows only: no layer keeps the context, nothing to compare"
            )
        if session.model_config.chunks is not None:
            raise ModelError(
                f"{model} has dual chunk attention, which is not recorded; take another model"
            )
        return session

    def record(
        self,
        document: Document,
        *,
        tokens: int | None,
        questions: int,
        seed: int,
        progress: Progress,
    ) -> list[LayerRecord]:
        """Reads at most `tokens` tokens of `document` and asks `questions` quotations of it.

        Before anything is read raises UsageError for a document too short to be clustered,
        ContextError and MemoryLimitError for one that is too long.
        """
        head = self._prompter.head_ids(Conversation((document,), None, (Message("user", "?"),)))
        head = head[:tokens]
        require_clustered(len(head), None if len(head) == tokens else document.name)
        asked = [self._dialogue(document, text) for text in self._quotations(head, questions, seed)]
        dialogues = [self._prompter.dialogue_ids(text, beginning=False) for text in asked]
        self._require_positions(len(head) + max(map(len, dialogues)) + STEPS)
        self._require_memory(len(head))

        windows = [layer.window for layer in self.model_config.layers]
        caches = [RecordingCache() if w is None else RingCache(w) for w in windows]
        context = Context(
            self._open_decoder(),
            caches,
            head,
            chunk_tokens=self.config.batch_size,
            device=self.device,
            stopped=lambda: False,
        )
        for event in context.read_head():
            progress(f"reading: {event.done:,} of {event.total:,} tokens")
        start = context.here()
        for number, (text, ids) in enumerate(zip(asked, dialogues, strict=True), start=1):
            progress(f"asking: question {number:,} of {questions:,}")
            self._answer_recorded(context, _drained(context.read(ids, text)))
            context.go_back(start)
        return [
            cache.record(number, len(head))
            for number, cache in enumerate(caches)
            if isinstance(cache, RecordingCache)
        ]

    def _answer_recorded(self, context: Context, logits: Tensor) -> None:
        """Writes greedily, never the end of the sequence, and keeps the queries."""
        ends = torch.tensor(sorted(self._defaults.stop_ids), dtype=torch.long, device=self.device)

        def draw(logits: Tensor) -> int:
            return int(logits.index_fill(0, ends, -torch.inf).argmax())

        _record(context, recording=True)
        # A token is read when the next one is asked for.
        for _ in generate_tokens(
            self._open_decoder(),
            context.caches,
            logits,
            context.tokens,
            draw=draw,
            max_new_tokens=STEPS + 1,
        ):
            pass
        _record(context, recording=False)

    def _dialogue(self, document: Document, question: str) -> str:
        conversation = Conversation((document,), None, (Message("user", question),))
        return self._prompter.dialogue(conversation)

    def _quotations(self, head: list[int], questions: int, seed: int) -> list[str]:
        """One from each of `questions` equal parts of the text of `head`."""
        rng = random.Random(seed)
        part = len(head) / questions

        def quotation(number: int) -> str:
            place = int((number + rng.random()) * part)
            place = max(0, min(place, len(head) - QUOTED_TOKENS))
            ids = head[place : place + QUOTED_TOKENS]
            words = self.tokenizer.decode(ids, continuing=True).replace("\ufffd", " ").split()
            # The first word may be the rest of one.
            chosen = words[1 : 1 + rng.randint(*WORDS)] or words or ["?"]
            return " ".join(chosen)[:LONGEST_QUESTION]

        return [quotation(number) for number in range(questions)]

    def _require_memory(self, tokens: int) -> None:
        if self.device.type != "cpu":
            return
        needed = estimate(
            self.model_config,
            weight_bytes=0,
            element_bytes=self.dtype.itemsize,
            tokens=tokens,
            chunk_tokens=self.config.batch_size,
            wave=WaveConfig(),
        )
        require(needed, model=self.name, tokens=tokens)


def _record(context: Context, *, recording: bool) -> None:
    for cache in context.caches:
        if isinstance(cache, RecordingCache):
            cache.recording = recording


def _drained(reading: Generator[Event, None, Tensor]) -> Tensor:
    """What a generator returns."""
    while True:
        try:
            next(reading)
        except StopIteration as finished:
            logits: Tensor = finished.value
            return logits
