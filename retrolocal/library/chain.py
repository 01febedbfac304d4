"""Which stored segments a text begins with: a walk along the chain of keys.

Segments need not be equally long: at every point each stored successor is tried, and since a key
names one text only, the walk visits every stored segment at most once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import DamagedError
from .catalogue import Catalogue
from .closing import Closing
from .filesystem import FileSystem
from .identity import Identity, TokenIds, child_key, root_key
from .manifest import TensorFile
from .segment import Segment, open_segment

Known = Mapping[str, Mapping[str, Sequence[TensorFile]]]
"""Parent -> key -> the files that manifests know under this key: one, unless it was made anew."""


class Prefix(Closing):
    """The stored segments that a text begins with, open; what `Library.longest_prefix` gives."""

    def __init__(
        self, identity: Identity, segments: Sequence[Segment], damage: Sequence[str]
    ) -> None:
        self.identity = identity
        self.segments = tuple(segments)
        """In the order of the text; none when nothing is known of it."""
        self.damage = tuple(damage)
        """One line for each stored segment that would have continued it and cannot be used."""

    @property
    def tokens(self) -> int:
        """How many tokens of the text need no prefill."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def key(self) -> str:
        """What the next segment's key is derived from."""
        return self.segments[-1].key if self.segments else root_key(self.identity)

    def close(self) -> None:
        for segment in self.segments:
            segment.close()


def known_segments(catalogue: Catalogue, root: str) -> Known:
    """All segments that descend from `root`."""
    known: defaultdict[str, defaultdict[str, list[TensorFile]]]
    known = defaultdict(lambda: defaultdict(list))
    for manifest in catalogue.manifests:
        if manifest.root != root:
            continue
        parent = root
        for segment in manifest.segments:
            files = known[parent][segment.key]
            if segment not in files:
                files.append(segment)
            parent = segment.key
    return known


def longest_chain(known: Known, root: str, token_ids: TokenIds) -> list[Sequence[TensorFile]]:
    """The segments of the longest stored beginning of `token_ids`, each with its known files."""
    ids = np.asarray(token_ids)
    before: dict[str, str] = {}
    best, best_end = root, 0
    ahead = [(root, 0)]
    files: dict[str, Sequence[TensorFile]] = {}
    while ahead:
        parent, start = ahead.pop()
        if start > best_end:
            best, best_end = parent, start
        for key, candidates in known.get(parent, {}).items():
            end = start + candidates[0].tokens
            if end <= len(ids) and child_key(parent, ids[start:end]) == key:
                before[key], files[key] = parent, candidates
                ahead.append((key, end))
    chain = []
    while best != root:
        chain.append(files[best])
        best = before[best]
    return chain[::-1]


def open_prefix(
    fs: FileSystem, identity: Identity, chain: Sequence[Sequence[TensorFile]]
) -> Prefix:
    """Opens a chain as far as it is undamaged; its last segment is checked in full."""
    opened: list[Segment] = []
    damage: list[str] = []
    try:
        parent = root_key(identity)
        for candidates in chain:
            segment = _first_undamaged(fs, candidates, parent, damage)
            if segment is None:
                break
            opened.append(segment)
            parent = segment.key
        while opened and not _is_whole(opened[-1], damage):
            opened.pop().close()
    except BaseException:
        for segment in opened:
            segment.close()
        raise
    return Prefix(identity, opened, damage)


def _first_undamaged(
    fs: FileSystem, candidates: Sequence[TensorFile], parent: str, damage: list[str]
) -> Segment | None:
    for file in candidates:
        try:
            return open_segment(fs, "segment", file, parent)
        except DamagedError as error:
            damage.append(str(error))
    return None


def _is_whole(segment: Segment, damage: list[str]) -> bool:
    try:
        segment.check()
    except DamagedError as error:
        damage.append(str(error))
        return False
    return True
