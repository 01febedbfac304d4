"""What is kept of the caches when a text has been read, as named tensors, and the way back.

A text is read in pieces; behind each, every wave layer has one segment more. A piece is kept as
those segments and the rest of every layer: sinks and window, or what a sliding window holds. So a
reading that was interrupted goes on behind its last piece with the very bytes it would have had.
The tail is what follows the last piece: perhaps shorter segments, and the rest.

Of a text that is not clustered a piece, and the tail, is what the layers grew by: of every layer
that gave nothing away since the piece before the tokens that came (`more`), of any other its rest.
A dialogue is kept in the same way behind a head, with the segments cut since.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .context import ContextCache
from .wave.buffer.source import FileSource, Stored

BLOCKS = "blocks"
MAPPED = (BLOCKS, "permutation")
"""Tensors of a segment that stay in their file until they are touched."""
ROWS = ("k", "v")
"""Those of a rest that have a row for each token."""


class Part(Protocol):
    """A piece or a tail as it was kept; `library.Segment` is one."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def tensor(self, name: str) -> Tensor: ...
    def load(self, name: str) -> Tensor: ...
    def location(self, name: str) -> tuple[Path, int, int]: ...
    def check(self, name: str | None = None, start: int = 0, stop: int | None = None) -> None: ...


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


def more_tensors(caches: Sequence[ContextCache], before: int, tokens: int) -> dict[str, Tensor]:
    """Of a text that is not clustered, `tokens` of which were read: what follows the first `before`
    of them."""
    return _behind(caches, [(0, before)] * len(caches), tokens - before)


def load(
    caches: Sequence[ContextCache], parts: Sequence[Part], tokens: int, *, checked: bool = True
) -> None:
    """Empty caches become those of so many tokens: pieces in order, perhaps a tail behind them.

    Small tensors are checked and copied; keys and values of segments stay where they are, and are
    checked when they are first touched unless they are `checked` already. Raises what `parts` raise
    for damage; the caches are then still empty.
    """
    _load(caches, parts, [_File(part, checked=checked) for part in parts], tokens)


def moved(caches: Sequence[ContextCache], number: int, part: Part) -> None:
    """Piece `number` of a text, just kept as `part`, need not be anywhere else on a disk."""
    file = _File(part, checked=True)
    for layer, cache in enumerate(caches):
        for stored in file.blocks(layer):
            cache.saved_to(number, stored)


class _File:
    """The file of a part, opened when its bytes are first asked for, once for all of them."""

    def __init__(self, part: Part, *, checked: bool) -> None:
        self._part, self._checked = part, checked
        self._whole: FileSource | None = None

    def blocks(self, layer: int) -> Iterable[Stored]:
        """Those of the segments of a layer, in order."""
        for number in _numbers(self._part, layer):
            name = f"{layer}.segment.{number}.{BLOCKS}"
            check = None if self._checked else functools.partial(self._part.check, name)
            yield Stored(functools.partial(self._open, name), check)

    def _open(self, name: str) -> FileSource:
        path, start, bytes = self._part.location(name)
        if self._whole is None:
            self._whole = FileSource(path)
        return self._whole.part(start, bytes)


def dialogue_tensors(
    caches: Sequence[ContextCache], head: Sequence[Part], grown: int
) -> dict[str, Tensor]:
    """What the caches hold behind a head (its pieces and tail; none: no head), `grown` tokens."""
    known = [
        (sum(len(_numbers(part, layer)) for part in head), _rows(head, layer))
        for layer in range(len(caches))
    ]
    return _behind(caches, known, grown)


def load_dialogue(
    caches: Sequence[ContextCache],
    head: Sequence[Part],
    dialogue: Part,
    tokens: int,
    *,
    checked: bool = True,
) -> None:
    """Empty caches become those of so many tokens: the head with the dialogue behind it.

    `checked` says whether the head's bytes are; raises as `load`.
    """
    files = [*(_File(part, checked=checked) for part in head), _File(dialogue, checked=True)]
    _load(caches, (*head, dialogue), files, tokens)


def _behind(
    caches: Sequence[ContextCache], known: Sequence[tuple[int, int]], grown: int
) -> dict[str, Tensor]:
    """What the caches hold, `grown` tokens, behind parts with so many segments and rows outside of
    segments of each layer."""
    tensors: dict[str, Tensor] = {}
    for layer, (cache, (first, before)) in enumerate(zip(caches, known, strict=True)):
        segments, rest, name = cache.saved_segments(first), cache.saved_rest(), "rest"
        for number, segment in enumerate(segments):
            tensors |= _named(f"{layer}.segment.{number}.", segment)
        if before and not segments and rest and rest["k"].shape[1] - before == grown:
            rest |= {one: rest[one][:, before:] for one in ROWS}
            name = "more"
        tensors |= _named(f"{layer}.{name}.", rest)
    return tensors


def _load(
    caches: Sequence[ContextCache], parts: Sequence[Part], files: Sequence[_File], tokens: int
) -> None:
    held = [
        (
            [one for part in parts for one in _segments(part, layer)],
            _rest(parts, layer),
            [one for file in files for one in file.blocks(layer)],
        )
        for layer in range(len(caches))
    ]
    for cache, (segments, rest, stored) in zip(caches, held, strict=True):
        cache.load(segments, rest, tokens, stored)


def _rest(parts: Sequence[Part], layer: int) -> dict[str, Tensor]:
    """What of a layer is in no segment: the last part's, behind what it only adds to."""
    found = []
    for part in reversed(parts):
        more = _collect(part, f"{layer}.more.", part.load)
        found.append(more or _collect(part, f"{layer}.rest.", part.load))
        if not more:
            break
    joined = [one for one in reversed(found) if one]
    if len(joined) > 1:
        rows = {name: torch.cat([one[name] for one in joined], dim=1) for name in ROWS}
        return joined[-1] | rows
    return joined[0] if joined else {}


def _rows(parts: Sequence[Part], layer: int) -> int:
    """How many tokens of a layer are in no segment."""
    rows = 0
    for part in reversed(parts):
        for kind in ("more", "rest"):
            name = f"{layer}.{kind}.k"
            if name in part.names:
                rows += part.tensor(name).shape[1]
        if f"{layer}.more.k" not in part.names:
            break
    return rows


def _numbers(part: Part, layer: int) -> list[int]:
    """Of the segments of a layer."""
    prefix = f"{layer}.segment."
    return sorted({int(name.split(".")[2]) for name in part.names if name.startswith(prefix)})


def _segments(part: Part, layer: int) -> Iterable[dict[str, Tensor]]:
    def get(name: str) -> Tensor:
        return part.tensor(name) if name.rpartition(".")[2] in MAPPED else part.load(name)

    for number in _numbers(part, layer):
        yield _collect(part, f"{layer}.segment.{number}.", get)


def _collect(part: Part, prefix: str, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): get(n) for n in part.names if n.startswith(prefix)}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
