"""What is kept of the caches when a text has been read, as named tensors, and the way back.

A text is read in pieces; behind each, every wave layer has one segment more. A piece is kept as
those segments and the rest of every layer: sinks and window, or what a sliding window holds. So a
reading that was interrupted goes on behind its last piece with the very bytes it would have had.
The tail is what follows the last piece: perhaps shorter segments, and the rest.

A dialogue is what follows a head that is kept: the segments cut since, and of every layer that gave
nothing away since the tokens it grew by (`more`), of any other its rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .context import ContextCache

MAPPED = ("blocks", "permutation")
"""Tensors of a segment that stay in their file until they are touched."""


class Stored(Protocol):
    """A piece or a tail as it was kept; `library.Segment` is one."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def tensor(self, name: str) -> Tensor: ...
    def load(self, name: str) -> Tensor: ...


def piece_tensors(caches: Sequence[ContextCache], number: int) -> dict[str, Tensor] | None:
    """Piece `number` of a text, just read; None when it is not one segment in every wave layer."""
    tensors: dict[str, Tensor] = {}
    clustered = False
    for layer, cache in enumerate(caches):
        segments = cache.saved_segments(number)
        clustered = clustered or len(segments) == 1
        if len(segments) > 1:
            return None
        for segment in segments:
            tensors |= _named(f"{layer}.segment.0.", segment)
        tensors |= _named(f"{layer}.rest.", cache.saved_rest())
    return tensors if clustered else None


def tail_tensors(caches: Sequence[ContextCache], pieces: int) -> dict[str, Tensor]:
    """What a text that has been read holds beside its first `pieces` pieces."""
    tensors: dict[str, Tensor] = {}
    for layer, cache in enumerate(caches):
        for number, segment in enumerate(cache.saved_segments(pieces)):
            tensors |= _named(f"{layer}.segment.{number}.", segment)
        tensors |= _named(f"{layer}.rest.", cache.saved_rest())
    return tensors


def load(caches: Sequence[ContextCache], stored: Sequence[Stored], tokens: int) -> None:
    """Empty caches become those of so many tokens: pieces in order, perhaps a tail behind them.

    Small tensors are checked and copied; keys and values stay where they are. Raises what `stored`
    raises for damage; the caches are then still empty.
    """
    held = [
        (
            [one for part in stored for one in _segments(part, layer)],
            _collect(stored[-1], f"{layer}.rest.", stored[-1].load),
        )
        for layer in range(len(caches))
    ]
    for cache, (segments, rest) in zip(caches, held, strict=True):
        cache.load(segments, rest, tokens)


def dialogue_tensors(
    caches: Sequence[ContextCache], head: Sequence[Stored], grown: int
) -> dict[str, Tensor]:
    """What the caches hold behind a head (its pieces and tail; none: no head), `grown` tokens."""
    tensors: dict[str, Tensor] = {}
    for layer, cache in enumerate(caches):
        known = sum(len(_numbers(part, layer)) for part in head)
        segments, rest = cache.saved_segments(known), cache.saved_rest()
        for number, segment in enumerate(segments):
            tensors |= _named(f"{layer}.segment.{number}.", segment)
        name = f"{layer}.rest.k"
        before = head[-1].tensor(name).shape[1] if head and name in head[-1].names else 0
        if not segments and rest and rest["k"].shape[1] - before == grown:
            rest |= {name: rest[name][:, before:] for name in ("k", "v")}
            tensors |= _named(f"{layer}.more.", rest)
        else:
            tensors |= _named(f"{layer}.rest.", rest)
    return tensors


def load_dialogue(
    caches: Sequence[ContextCache], head: Sequence[Stored], dialogue: Stored, tokens: int
) -> None:
    """Empty caches become those of so many tokens: the head with the dialogue behind it.

    Raises as `load`.
    """
    held = []
    for layer in range(len(caches)):
        segments = [one for part in (*head, dialogue) for one in _segments(part, layer)]
        rest = _collect(dialogue, f"{layer}.rest.", dialogue.load)
        more = _collect(dialogue, f"{layer}.more.", dialogue.load)
        before = _collect(head[-1], f"{layer}.rest.", head[-1].load) if head and more else {}
        for name in before:
            more[name] = torch.cat((before[name], more[name]), dim=1)
        held.append((segments, rest | more))
    for cache, (segments, rest) in zip(caches, held, strict=True):
        cache.load(segments, rest, tokens)


def _numbers(part: Stored, layer: int) -> set[int]:
    """Of the segments of a layer in a part."""
    prefix = f"{layer}.segment."
    return {int(name.split(".")[2]) for name in part.names if name.startswith(prefix)}


def _segments(part: Stored, layer: int) -> Iterable[dict[str, Tensor]]:
    def get(name: str) -> Tensor:
        return part.tensor(name) if name.rpartition(".")[2] in MAPPED else part.load(name)

    for number in sorted(_numbers(part, layer)):
        yield _collect(part, f"{layer}.segment.{number}.", get)


def _collect(part: Stored, prefix: str, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): get(n) for n in part.names if n.startswith(prefix)}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
