"""What a stored segment was made from and how: identities, and the keys derived from them.

A segment's key is a chain of hashes over token ids whose root is the hash of an `Identity`, so two
texts share a segment exactly when everything before it and everything that changes the numbers is
the same. Keys are BLAKE2b-256 in 64 hexadecimal digits. Knows no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from . import canonical
from .canonical import Json

FORMAT = 1
"""Version of everything on disk (format.md); it is part of every key."""

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that changes the numbers in a stored segment.

    `prefill` and `prefix` are settled when a text is read, and what was settled then wins over what
    would be chosen today: None in them means "as stored" and is for looking up only.
    """

    weights: Json
    """Name -> SHA-256 of every weight file (`digests.file_digests`); also adapters."""
    model: Json
    """The part of config.json that the computation depends on."""
    rope: Json
    """How positions are rotated, all scaling and chunking fields."""
    tokenizer: Json
    """SHA-256 of the tokenizer's files."""
    dtype: str
    """What the keys and values were computed in."""
    clustering: Json
    """Segment length, tokens per cluster, rounds, singles, sinks, window ..."""
    codec: Json
    """How the store keeps keys and values, and the index its centroids."""
    numerics: int
    """Epoch of the program's arithmetic: raised whenever a kernel begins to round differently."""
    prefill: Json = None
    """How the text was read, with the resolved crossover: {"kind": "dense"}; one that was too short
    for the index has "clustered": False in it."""
    prefix: Json = None
    """What precedes the first document: template header, system text, dates, as text or ids."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, canonical.plain(getattr(self, field.name)))

    @property
    def settled(self) -> bool:
        """Whether it names one set of numbers: nothing in it is "as stored"."""
        return self.prefill is not None and self.prefix is not None

    @property
    def clustered(self) -> bool:
        """Whether the text was long enough for the index, as far as there was one."""
        read = self.prefill if isinstance(self.prefill, dict) else {}
        return self.clustering is not None and read.get("clustered") is not False

    def facts(self) -> dict[str, Any]:
        """All fields and the format, as JSON."""
        return {"format": FORMAT} | {
            field.name: getattr(self, field.name) for field in fields(self)
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Identity:
        """The identity whose `facts` these are; raises ValueError."""
        known = {field.name for field in fields(cls)}
        if set(facts) != known | {"format"} or facts["format"] != FORMAT:
            raise ValueError(f"not an identity of format {FORMAT}")
        if type(facts["dtype"]) is not str or type(facts["numerics"]) is not int:
            raise ValueError("an identity's dtype or numerics is mistyped")
        return cls(**{name: facts[name] for name in known})


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting in which two identities differ."""

    field: str
    """Dotted name: `rope.theta`."""
    saved: Json
    wanted: Json

    @property
    def part(self) -> str:
        """The field of the identity itself: `rope`."""
        return self.field.partition(".")[0]

    @property
    def of_models(self) -> bool:
        """Whether they are of two models, not of one held in fewer bits."""
        return self.part == "weights" and self.field != "weights.quant"

    def __str__(self) -> str:
        return f"{self.field} (saved {_shown(self.saved)}, now {_shown(self.wanted)})"


def differences(saved: Identity, wanted: Identity) -> tuple[Difference, ...]:
    """The fields in which `saved` is not what is wanted, in the order of the fields.

    Nested fields are named one by one. Where `wanted` is None in `prefill` or `prefix`, or in a
    field of these, anything saved will do.
    """
    found: list[Difference] = []
    for field in fields(Identity):
        name = field.name
        may_be_open = name in ("prefill", "prefix")
        values = getattr(saved, name), getattr(wanted, name)
        found.extend(_differences(name, *values, may_be_open=may_be_open))
    return tuple(found)


def root_key(identity: Identity) -> str:
    """The key that the first segment's key is derived from; raises ValueError unless settled."""
    if not identity.settled:
        raise ValueError("an identity with `prefill` or `prefix` left open has no key")
    return _hash(b"retrolocal root", canonical.encode(identity.facts()))


def child_key(parent: str, token_ids: TokenIds) -> str:
    """The key of the segment with these tokens behind the segment (or root) `parent`."""
    return _hash(b"retrolocal seg", bytes.fromhex(parent) + token_bytes(token_ids))


def tail_key(parent: str, token_ids: TokenIds) -> str:
    """The key of the tail with these tokens behind `parent`."""
    return _hash(b"retrolocal tail", bytes.fromhex(parent) + token_bytes(token_ids))


def token_bytes(token_ids: TokenIds) -> bytes:
    """Token ids as little-endian 32-bit words; raises ValueError for ids outside 0 .. 2**31 - 1."""
    ids = np.asarray(token_ids)
    if ids.size == 0:
        return b""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError("token ids are one row of whole numbers")
    if int(ids.min()) < 0 or int(ids.max()) >= 1 << 31:
        raise ValueError("a token id is outside 0 .. 2**31 - 1")
    return ids.astype("<u4").tobytes()


def _hash(person: bytes, data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32, person=person).hexdigest()


def _differences(name: str, saved: Any, wanted: Any, *, may_be_open: bool) -> Iterator[Difference]:
    if may_be_open and wanted is None:
        return
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted(saved.keys() | wanted.keys()):
            inside = may_be_open and key in wanted
            yield from _differences(
                f"{name}.{key}", saved.get(key), wanted.get(key), may_be_open=inside
            )
    elif canonical.encode(saved) != canonical.encode(wanted):
        yield Difference(name, saved, wanted)


def _shown(value: Json) -> str:
    text = value if isinstance(value, str) else canonical.encode(value).decode()
    return text if len(text) <= 40 else f"{text[:36]}..."
