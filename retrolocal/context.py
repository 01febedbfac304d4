"""A context: the layer caches of one dialogue and the text that they hold.

It reads a head (template text and documents) once, marks its end, and can go back to a mark: a
new question, an edited one or a rewritten history reads only what differs. Ids that were drawn
but not read yet wait here. Knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .device import device_errors
from .errors import UsageError
from .generate import Model, Progress, SteppedCache, prefill
from .heap import give_back
from .relief import Relief
from .statistics import CacheStatistics
from .wave.buffer.source import Stored


class ContextCache(SteppedCache, Protocol):
    """What a context needs of a layer cache: the decoder loop's part, and its figures."""

    def settle(self) -> None: ...
    def resume(self) -> None: ...
    def saved_segments(self, first: int = 0) -> list[dict[str, Tensor]]: ...
    def saved_rest(self) -> dict[str, Tensor]: ...
    def saved_to(self, number: int, stored: Stored) -> None: ...
    def load(
        self,
        segments: Sequence[Mapping[str, Tensor]],
        rest: Mapping[str, Tensor],
        tokens: int,
        stored: Sequence[Stored] = (),
    ) -> None: ...
    def read_from(self) -> Tensor | None: ...
    def statistics(self) -> CacheStatistics: ...
    def reset_statistics(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Mark:
    """A point to go back to."""

    dialogue: str
    tokens: int
    waiting: tuple[int, ...]
    logits: Tensor | None
    """float32 [vocab] after the last token, where a reply can begin."""
    snapshots: tuple[Any, ...]


class Context:
    def __init__(
        self,
        model: Model,
        caches: Sequence[ContextCache],
        head_ids: Sequence[int],
        *,
        chunk_tokens: int,
        device: torch.device,
        stopped: Callable[[], bool],
        piece_end: Callable[[int], int] = lambda tokens: 1 << 62,
        closing: Callable[[], None] = lambda: None,
        relief: Relief | None = None,
    ) -> None:
        """`piece_end(n)` is the length above n up to which the head is read next; by default it
        is read in one piece. `closing` is called by `close`."""
        self.caches = caches
        self.tokens = 0
        """Tokens in the caches."""
        self.dialogue = ""
        """The dialogue as far as it is in the caches or waiting."""
        self.waiting: tuple[int, ...] = ()
        """Ids at the end of `dialogue` that are not in the caches."""
        self.read_tokens = 0
        """Tokens read so far, those that were dropped again included."""
        self._logits: Tensor | None = None
        self._head = tuple(head_ids)
        self._model = model
        self._chunk_tokens = chunk_tokens
        self._relief = relief
        self._device = device
        self._stopped = stopped
        self._piece_end = piece_end
        self._closing = closing
        self._marks: list[Mark] = []

    @property
    def head(self) -> tuple[int, ...]:
        """Token ids of what stands before the dialogue."""
        return self._head

    @property
    def head_tokens(self) -> int:
        return len(self._head)

    @property
    def head_is_read(self) -> bool:
        return bool(self._marks)

    def close(self) -> None:
        """Gives back what the caches share; the context is of no use any more. Idempotent."""
        self._closing()

    def loaded(self, tokens: int) -> None:
        """So many tokens of the head are in the caches: they were loaded."""
        assert self.tokens == 0
        self.tokens = tokens

    def saved(self) -> dict[str, Tensor]:
        """Where the dialogue stands beside what the caches hold, as `resumed` takes it."""
        text = self.dialogue.encode("utf-8", "surrogatepass")
        return {
            "dialogue": torch.tensor(list(text), dtype=torch.uint8),
            "waiting": torch.tensor(self.waiting, dtype=torch.int64),
        }

    def resumed(self, tokens: int, dialogue: Tensor, waiting: Tensor) -> None:
        """So many tokens are in the caches, the dialogue among them: they were loaded.

        The only point to go back to is this one (see `leads_to`).
        """
        assert self.tokens == 0
        self.tokens = tokens
        self.dialogue = bytes(dialogue.tolist()).decode("utf-8", "surrogatepass")
        self.waiting = tuple(waiting.tolist())
        for cache in self.caches:
            cache.resume()
        self._marks = [self.here()]

    def leads_to(self, dialogue: str) -> bool:
        """Whether there is a point that `dialogue` continues."""
        points = [self.dialogue, *(mark.dialogue for mark in self._marks)]
        return not self._marks or any(dialogue.startswith(point) for point in points)

    def read_head(
        self, on_piece: Callable[[int], None] = lambda tokens: None
    ) -> Generator[Progress, None, None]:
        """Reads what is missing of the head. An interrupted reading goes on where it stopped.

        It goes piece by piece, so that the same text is read in the same steps wherever reading
        began; `on_piece(tokens)` is called behind each full piece.
        """
        if self._marks:
            return
        start, total = self.tokens, len(self._head)
        while self.tokens < total:
            end, before = self._piece_end(self.tokens), self.tokens
            for progress in self._read(self._head[before:end], wanted=0):
                if self.tokens == end:
                    on_piece(end)
                yield Progress("prefill", before - start + progress.done, total - start)
            give_back()
        for cache in self.caches:
            cache.settle()
        self._marks = [self.here()]

    def read(self, ids: Sequence[int], dialogue: str) -> Generator[Progress, None, Tensor]:
        """Reads the waiting ids and `ids`, the rest of `dialogue`; returns the logits after them.

        With nothing to read (the same question again) they are known already. Interrupted: the
        context is what it was before. Raises UsageError when there is no token at all.
        """
        before, ids = self.here(), (*self.waiting, *ids)
        if ids:
            try:
                self._logits = (yield from self._read(ids, wanted=1))[0]
            except BaseException:
                self.go_back(before)
                raise
        if self._logits is None:
            raise UsageError("the prompt is empty; give at least one word")
        self.dialogue, self.waiting = dialogue, ()
        if ids:
            self._marks = [self._marks[0], before, self.here()]
        return self._logits

    def rewind_to(self, dialogue: str) -> str:
        """Goes back to the last point that `dialogue` continues; returns what follows there.

        Points are the end of the head and, of the last question, its beginning and its end: asked
        again it costs nothing, edited it costs itself.
        """
        if not dialogue.startswith(self.dialogue):
            self.go_back(
                next(mark for mark in reversed(self._marks) if dialogue.startswith(mark.dialogue))
            )
        return dialogue[len(self.dialogue) :]

    def forget_dialogue(self) -> bool:
        """Goes back to the end of the head, where it has been read, and counts anew.

        False for a dialogue that was reopened, which knows no point before its end.
        """
        if self.head_is_read:
            if not self.leads_to(""):
                return False
            self.rewind_to("")
            for cache in self.caches:
                cache.reset_statistics()
        return True

    def keep_reply(self, drawn: Sequence[int], text: str, *, ended: bool) -> None:
        """After a reply: all ids drawn but the last are in the caches.

        `ended` when the last one is the end of the sequence, which is not part of the text.
        """
        self._logits = None
        self.tokens += max(0, len(drawn) - 1)
        self.dialogue += text
        self.waiting = () if ended else tuple(drawn[-1:])

    def read_from(self, layers: int) -> Tensor | None:
        """The mean share of the attention that each token got in the reply, float32 [tokens].

        From so many layers that know it, evenly spaced; None where none does.
        """
        knowing = [cache for cache in self.caches if cache.statistics().kind != "window"]
        spaced = knowing[:: max(1, len(knowing) // layers)]
        found = [shares for cache in spaced if (shares := cache.read_from()) is not None]
        shortest = min(map(len, found), default=0)
        return torch.stack([shares[:shortest] for shares in found]).mean(0) if found else None

    def here(self) -> Mark:
        snapshots = tuple(cache.snapshot() for cache in self.caches)
        return Mark(self.dialogue, self.tokens, self.waiting, self._logits, snapshots)

    def go_back(self, mark: Mark) -> None:
        for cache, snapshot in zip(self.caches, mark.snapshots, strict=True):
            cache.restore(snapshot)
        self.tokens, self.dialogue = mark.tokens, mark.dialogue
        self.waiting, self._logits = mark.waiting, mark.logits

    def _read(self, ids: Sequence[int], *, wanted: int) -> Generator[Progress, None, Tensor]:
        start = self.tokens
        reading = prefill(
            self._model,
            self.caches,
            torch.tensor(ids, device=self._device),
            start,
            chunk_tokens=self._chunk_tokens,
            wanted=wanted,
            stopped=self._stopped,
            relief=self._relief,
        )
        while True:
            try:
                with device_errors():
                    progress = next(reading)
            except StopIteration as finished:
                logits: Tensor = finished.value
                return logits
            self.read_tokens += start + progress.done - self.tokens
            self.tokens = start + progress.done
            yield progress


def close(*contexts: Context | None) -> None:
    """Closes those that are there."""
    for context in contexts:
        if context is not None:
            context.close()
