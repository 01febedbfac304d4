"""What an answer is made with, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .config import SamplingConfig, require_predict
from .errors import UsageError
from .generate import Piece, Progress
from .outcome import Source, StopReason
from .statistics import CacheStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The last event of an answer: the whole of it with its figures."""

    text: str
    """All of it, with the block of thinking that it may begin with."""
    stop_reason: StopReason
    prompt_tokens: int
    """Tokens of the whole prompt, those that were in the caches already included."""
    prefill_tokens: int
    """Tokens of the prompt that were read for this answer."""
    prefill_seconds: float
    generated_tokens: int
    generate_seconds: float
    cache: CacheStatistics
    sources: tuple[Source, ...] = ()
    """The passages of the documents that it was read from."""
    thinking: str = ""
    """The block that `text` begins with, its tags included."""

    @property
    def answer(self) -> str:
        """The text behind the block of thinking."""
        return self.text.removeprefix(self.thinking)

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode steps per second; the first token comes out of the prefill."""
        steps = self.generated_tokens - 1
        return steps / self.generate_seconds if steps > 0 and self.generate_seconds > 0 else 0.0


Event = Progress | Piece | Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class AskOptions:
    """How one answer is made."""

    max_new_tokens: int | None = None
    """None: the model's own limit if it has one, else as many as fit; -1: as many as fit."""
    sampling: SamplingConfig | None = None
    """None: the model's own settings, else llama.cpp's."""
    stop: Sequence[str] = ()
    """Texts that end the answer; they are not part of it."""
    ignore_eos: bool = False
    """Never draw the end-of-sequence token."""
    sources: bool = True
    """Whether the reply says which passages it was read from."""

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise UsageError("--stop is empty; give the text to stop before")
        if self.max_new_tokens is not None:
            require_predict(self.max_new_tokens)

    def changed(
        self,
        max_new_tokens: int | None,
        temperature: float | None,
        own: Callable[[], SamplingConfig],
    ) -> AskOptions:
        """With what is given, not None, in its place; `own` are the model's own settings."""
        tokens = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        sampling = self.sampling
        if temperature is not None:
            sampling = replace(sampling or own(), temperature=temperature)
        return replace(self, max_new_tokens=tokens, sampling=sampling)

    def limit(self, default: int | None, *, room: int) -> int:
        """Tokens to generate at most; `default` is the model's own limit."""
        wanted = default if self.max_new_tokens is None else self.max_new_tokens
        return room if wanted is None or wanted < 0 else min(wanted, room)
