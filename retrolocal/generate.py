"""The decoder loop as synchronous generators: token ids, then text, then the whole string.

`prefill` puts a prompt into the caches and returns the logits after it; `generate_tokens` draws
token ids from there on; `stream_text` turns ids into text and stops at stop strings;
`mark_thinking` tells thinking from the answer; `generate_text` joins it. Token ids know no
tokenizer and text knows no tensor.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .errors import Interrupted, UsageError
from .outcome import StopReason
from .relief import Relief
from .thinking import Thinking


class SteppedCache(Protocol):
    """What the loop needs of a layer cache besides `attend`: going back."""

    def snapshot(self) -> Any: ...
    def restore(self, snapshot: Any) -> None: ...


class Model(Protocol):
    """What the loop needs of a decoder."""

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Sequence[Any],
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor: ...


class TextDecoder(Protocol):
    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Work before the first token of a reply."""

    stage: Literal["load", "prefill"]
    done: int
    """Bytes of weights loaded, or tokens of the prompt read."""
    total: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has become certain."""

    text: str
    thinking: bool = False
    """It belongs to the block of thinking before the answer."""


@dataclass(frozen=True, slots=True)
class End:
    """The last event of a reply."""

    reason: StopReason
    tokens: int
    """Tokens drawn, the end-of-sequence token included."""


def prefill(
    model: Model,
    caches: Sequence[SteppedCache],
    token_ids: Tensor,
    start: int,
    *,
    chunk_tokens: int,
    wanted: int = 1,
    stopped: Callable[[], bool] = lambda: False,
    relief: Relief | None = None,
) -> Generator[Progress, None, Tensor]:
    """Appends token_ids int64 [T], T >= 1, at positions start ...

    Returns the logits float32 [wanted, vocab] of the last `wanted` of them: in a long text each one
    costs as much as attending to all that was read.

    Yields after each chunk. When `stopped()` turns true Interrupted is raised: the chunks that
    were yielded are in the caches, the one that was running is taken back. So it is when a GPU's
    memory is full; `relief` then says how to go on.
    """
    total, relief = token_ids.shape[0], Relief() if relief is None else relief

    def check(layer: int) -> None:
        if stopped():
            raise Interrupted("stopped while reading the prompt")

    first = 0
    while True:
        chunk = token_ids[first : first + min(chunk_tokens, relief.chunk_tokens)]
        end = first + chunk.shape[0]
        snapshots: list[Any] = []
        full: torch.OutOfMemoryError | None = None
        try:
            snapshots.extend(cache.snapshot() for cache in caches)
            positions = torch.arange(start + first, start + end, device=token_ids.device)
            logits = model(chunk, positions, caches, wanted if end == total else 0, check)
        except (Interrupted, KeyboardInterrupt):
            _go_back(caches, snapshots)
            raise
        except torch.OutOfMemoryError as error:
            # Without the frames that still hold what was computed.
            full = error.with_traceback(None)
        if full is not None:
            _go_back(caches, snapshots)
            if not relief.for_prompt(caches, len(chunk)):
                raise full
            continue
        first = end
        # Caches keep what a living snapshot may want back.
        snapshots.clear()
        yield Progress("prefill", end, total)
        if end == total:
            return logits


def _go_back(caches: Sequence[SteppedCache], snapshots: Sequence[Any]) -> None:
    """Those without a snapshot have not been touched since the last ones."""
    for cache, snapshot in zip(caches, snapshots, strict=False):
        cache.restore(snapshot)


def all_logits(
    model: Model,
    caches: Sequence[SteppedCache],
    token_ids: Sequence[int],
    *,
    vocabulary: int,
    chunk_tokens: int,
    device: torch.device,
) -> Tensor:
    """Logits at every position of a text, float32 [T, vocab], with caches that are empty.

    Raises UsageError for no ids, what is none, or an id outside the vocabulary.
    """
    try:
        known = [operator.index(one) for one in token_ids]
    except TypeError:
        shown = " ".join(reprlib.repr(token_ids).split())
        raise UsageError(
            f"{shown} holds no token ids; give whole numbers, such as those of "
            "session.tokenizer.encode(TEXT)"
        ) from None
    wrong = next((one for one in known if not 0 <= one < vocabulary), None)
    if wrong is not None:
        raise UsageError(f"token id {wrong} is outside the vocabulary of {vocabulary:,}")
    if not known:
        raise UsageError("no token ids were given; give at least one")
    ids = torch.tensor(known, device=device)
    positions = torch.arange(len(known), device=device)
    chunks = zip(torch.split(ids, chunk_tokens), torch.split(positions, chunk_tokens), strict=True)
    return torch.cat([model(c, at, caches, c.shape[0]) for c, at in chunks])


def generate_tokens(
    model: Model,
    caches: Sequence[SteppedCache],
    logits: Tensor,
    position: int,
    *,
    draw: Callable[[Tensor], int],
    max_new_tokens: int,
) -> Iterator[int]:
    """Yields token ids drawn one after another, `logits` [vocab] being those after the prompt.

    A token enters the caches when the next one is asked for: the last one yielded is in no cache.
    """
    for count in range(max_new_tokens):
        token = draw(logits)
        yield token
        if count + 1 < max_new_tokens:
            ids = torch.tensor([token], device=logits.device)
            positions = torch.tensor([position + count], device=logits.device)
            logits = model(ids, positions, caches, 1)[0]


def stream_text(
    tokens: Iterator[int],
    decoder: TextDecoder,
    *,
    end_ids: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece | End]:
    """Yields pieces of text and at last one `End`.

    Text that may be the beginning of a stop string is held back; the stop string itself and what
    follows it is not part of the text. Nor is the half of a character that a limit cut through.
    """
    held, count = "", 0
    reason: StopReason = "length"
    for token in tokens:
        count += 1
        if token in end_ids:
            reason = "eos"
            break
        held += decoder.push(token)
        cut = _first_stop(held, stop_strings)
        if cut is not None:
            if cut:
                yield Piece(held[:cut])
            yield End("stop", count)
            return
        certain = len(held) - _longest_beginning(held, stop_strings)
        if certain:
            yield Piece(held[:certain])
            held = held[certain:]
        if stopped():
            reason = "interrupted"
            break
    rest = decoder.finish()
    if reason != "eos":
        # The bytes of half a character: the rest of it was not generated.
        rest = rest.rstrip("\ufffd")
    held += rest
    cut = _first_stop(held, stop_strings)
    if cut is not None:
        held, reason = held[:cut], "stop"
    if held:
        yield Piece(held)
    yield End(reason, count)


def mark_thinking(events: Iterator[Piece | End], begun: str = "") -> Iterator[Piece | End]:
    """The same text, with the block of thinking before the answer in pieces of its own.

    `begun` is what the prompt has of it already; it comes first, so that the block is whole.
    """
    thinking = Thinking()
    for part in thinking.push(begun):
        yield Piece(part.text, part.thinking)
    for event in events:
        parts = thinking.finish() if isinstance(event, End) else thinking.push(event.text)
        for part in parts:
            yield Piece(part.text, part.thinking)
        if isinstance(event, End):
            yield event


def generate_text(events: Iterator[Piece | End]) -> str:
    """The whole reply."""
    return "".join(event.text for event in events if isinstance(event, Piece))


def _first_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    found = [at for at in (text.find(stop) for stop in stop_strings) if at >= 0]
    return min(found, default=None)


def _longest_beginning(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest end of `text` that a stop string begins with."""
    longest = 0
    for stop in stop_strings:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if stop.startswith(text[len(text) - length :]):
                longest = length
                break
    return longest
