"""The manifest: one JSON file per entry that lists everything the entry is made of.

`encode` and `decode` are inverse; `decode` believes nothing: checksum, version, canonical form,
names, counts, sums. Knows no folders; format.md is the specification.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, get_args

import xxhash

from ..errors import DamagedError, LibraryError
from . import canonical
from .canonical import Json
from .identity import FORMAT, Identity, root_key

Kind = Literal["document", "corpus"]
State = Literal["running", "complete"]
MAX_MANIFEST_BYTES = 16 << 20
MAX_SEGMENTS = 65_536
MAX_DOCUMENTS = 65_536
MAX_NAME = 255
MAX_BYTES = 1 << 53

_TRAILER = re.compile(rb"\nretrolocal-manifest ([1-9]\d{0,8}|0) ([1-9]\d{0,8}) ([0-9a-f]{32})\n")
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Fixed code points: what is printable differs between versions of Unicode."""
_TRAILER_BYTES = 80
"""No trailer is longer."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A segment or a tail as its manifest knows it."""

    key: str
    """Its place in the chain of keys; the file's name."""
    tokens: int
    bytes: int
    """Length of the file."""
    header: str
    """xxh3_128 of the file's header, which holds the checksums of its data."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An object that is bytes and nothing else: a text, a page map."""

    name: str
    """BLAKE2b-256 of the bytes; the file's name."""
    bytes: int
    checksum: str
    """xxh3_128 of the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """One document of an entry."""

    name: str
    digest: str
    """BLAKE2b-256 of the file's bytes, 64 hexadecimal digits."""
    extractor: str
    """Name, version and options of what made text of it."""
    characters: int
    text: Blob
    """UTF-8."""
    outline: Blob
    """Canonical JSON: what the extractor said of pages and chapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    key: str
    """The entry's key, 32 hexadecimal digits; the file's name."""
    kind: Kind
    name: str
    """What users call it: the first document's file name, or the corpus's name."""
    state: State
    created: int
    """Seconds since 1970."""
    identity: Identity
    documents: tuple[StoredDocument, ...]
    segments: tuple[TensorFile, ...] = ()
    """In the order of the text; each key is the child of the one before."""
    tail: TensorFile | None = None
    """What follows the segments; None while running."""
    page_map: Blob | None = None
    """Token -> document, page, characters: at most 16 bytes a token."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """What the model was called that read the text; None where nothing fit to be shown says."""
        model = self.facts.get("model")
        return model if isinstance(model, str) and not _NO_NAME.search(model) else None

    @property
    def root(self) -> str:
        return root_key(self.identity)

    @property
    def tokens(self) -> int:
        """Tokens of all segments and the tail."""
        return sum(file.tokens for file in self.tensor_files)

    def precedes(self, other: Manifest) -> bool:
        """Whether both are running manifests of one text and `other` has come as far or further."""
        return (
            (self.state, self.key) == ("running", other.key)
            and other.state == "running"
            and (self.documents, self.identity) == (other.documents, other.identity)
            and other.segments[: len(self.segments)] == self.segments
        )

    @property
    def tensor_files(self) -> tuple[TensorFile, ...]:
        return self.segments if self.tail is None else (*self.segments, self.tail)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        blobs = [blob for document in self.documents for blob in (document.text, document.outline)]
        return tuple(blobs if self.page_map is None else [*blobs, self.page_map])

    @property
    def bytes(self) -> int:
        """Of all files it names, each once."""
        sizes = {file.key: file.bytes for file in self.tensor_files}
        sizes |= {blob.name: blob.bytes for blob in self.blobs}
        return sum(sizes.values())


def encode(manifest: Manifest) -> bytes:
    """The bytes of the file; raises ValueError for more than a manifest may have."""
    body = canonical.encode(
        {
            "created": manifest.created,
            "documents": [_document_facts(document) for document in manifest.documents],
            "facts": manifest.facts,
            "identity": manifest.identity.facts(),
            "key": manifest.key,
            "kind": manifest.kind,
            "name": manifest.name,
            "page_map": None if manifest.page_map is None else _slots(manifest.page_map),
            "segments": [_slots(segment) for segment in manifest.segments],
            "state": manifest.state,
            "tail": None if manifest.tail is None else _slots(manifest.tail),
        }
    )
    sealed = body + f"\nretrolocal-manifest {FORMAT} {len(body)} ".encode()
    if len(sealed) > MAX_MANIFEST_BYTES - _TRAILER_BYTES:
        raise ValueError(f"a manifest of {len(sealed):,} bytes is too large; make several entries")
    return sealed + xxhash.xxh3_128_hexdigest(sealed).encode() + b"\n"


def decode(data: bytes, label: str) -> Manifest:
    """The manifest in `data`, the bytes of the file that messages call `label`.

    Raises DamagedError, and LibraryError for another format.
    """
    body = _unsealed(data, label)
    try:
        manifest = _manifest(canonical.decode(body))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{label} is damaged ({error}); {remedy(label)}") from error
    return manifest


def _unsealed(data: bytes, label: str) -> bytes:
    trailer = _TRAILER.search(data, max(0, len(data) - _TRAILER_BYTES))
    if trailer is None or trailer.end() != len(data):
        raise DamagedError(
            f"{label} is damaged (its end is missing or overwritten); {remedy(label)}"
        )
    version, length, checksum = int(trailer[1]), int(trailer[2]), trailer[3].decode()
    if xxhash.xxh3_128_hexdigest(data[: trailer.start(3)]) != checksum:
        raise DamagedError(f"{label} is damaged (its checksum differs); {remedy(label)}")
    if version != FORMAT:
        again = "" if version > FORMAT else f"; {remedy(label)}"
        raise LibraryError(f"{label} {of_format(version)}{again}")
    if length != trailer.start():
        raise DamagedError(f"{label} is damaged (its length differs); {remedy(label)}")
    return data[:length]


def remedy(label: str) -> str:
    """What to do about a manifest that cannot be used, whose file begins with its entry's key."""
    key = PurePath(label).name[:12]
    return f"remove it (retrolocal library rm {key}) and ingest again"


def of_format(version: int) -> str:
    """What to say of something whose format is not ours."""
    if version > FORMAT:
        return (
            f"was made by a newer retrolocal (format {version}; this one reads {FORMAT}); "
            "update retrolocal"
        )
    return f"was made by an older retrolocal (format {version}; this one reads {FORMAT})"


def _slots(value: TensorFile | Blob) -> dict[str, Json]:
    return {name: getattr(value, name) for name in value.__slots__}


def _document_facts(document: StoredDocument) -> dict[str, Json]:
    plain = ("name", "digest", "extractor", "characters")
    facts: dict[str, Json] = {name: getattr(document, name) for name in plain}
    return facts | {"text": _slots(document.text), "outline": _slots(document.outline)}


def _manifest(facts: Any) -> Manifest:
    _fields(
        facts,
        *("created", "documents", "facts", "identity", "key", "kind", "name", "page_map"),
        *("segments", "state", "tail"),
    )
    manifest = Manifest(
        key=_hex(facts["key"], 32),
        kind=_one_of(facts["kind"], get_args(Kind)),
        name=checked_name(facts["name"]),
        state=_one_of(facts["state"], get_args(State)),
        created=_whole(facts["created"]),
        identity=Identity.of(_object(facts["identity"])),
        documents=tuple(map(_document, _list(facts["documents"], MAX_DOCUMENTS))),
        segments=tuple(map(_tensor_file, _list(facts["segments"], MAX_SEGMENTS))),
        tail=None if facts["tail"] is None else _tensor_file(facts["tail"]),
        page_map=None if facts["page_map"] is None else _blob(facts["page_map"]),
        facts=_object(facts["facts"]),
    )
    if not manifest.identity.settled:
        raise ValueError("its identity is incomplete")
    if not manifest.documents:
        raise ValueError("it has no document")
    if manifest.state == "complete" and manifest.tail is None:
        raise ValueError("it is complete but has no tail")
    if any(segment.tokens == 0 for segment in manifest.segments):
        raise ValueError("a segment has no tokens")
    if len({file.key for file in manifest.tensor_files}) != len(manifest.tensor_files):
        raise ValueError("a segment occurs twice")
    return manifest


def checked_name(name: object) -> str:
    """`name` if an entry or a document can be called so; raises ValueError."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or _NO_NAME.search(name):
        raise ValueError(f"a name has 1 to {MAX_NAME} characters and no control characters")
    return name


def name_like(name: str) -> str:
    """The closest thing to `name` that is a name: file systems allow more than a terminal."""
    return _NO_NAME.sub("\N{REPLACEMENT CHARACTER}", name)[:MAX_NAME] or "unnamed"


def checked_digest(digest: object) -> str:
    """`digest` if it is BLAKE2b-256 in 64 hexadecimal digits; raises ValueError."""
    return _hex(digest, 64)


def _document(facts: Any) -> StoredDocument:
    _fields(facts, "name", "digest", "extractor", "characters", "text", "outline")
    return StoredDocument(
        name=checked_name(facts["name"]),
        digest=_hex(facts["digest"], 64),
        extractor=checked_name(facts["extractor"]),
        characters=_whole(facts["characters"]),
        text=_blob(facts["text"]),
        outline=_blob(facts["outline"]),
    )


def _tensor_file(facts: Any) -> TensorFile:
    _fields(facts, "key", "tokens", "bytes", "header")
    return TensorFile(
        key=_hex(facts["key"], 64),
        tokens=_whole(facts["tokens"]),
        bytes=_whole(facts["bytes"]),
        header=_hex(facts["header"], 32),
    )


def _blob(facts: Any) -> Blob:
    _fields(facts, "name", "bytes", "checksum")
    return Blob(
        name=_hex(facts["name"], 64),
        bytes=_whole(facts["bytes"]),
        checksum=_hex(facts["checksum"], 32),
    )


def _fields(facts: Any, *names: str) -> None:
    if set(_object(facts)) != set(names):
        raise ValueError(f"its fields are not {', '.join(sorted(names))}")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object is missing")
    return value


def _list(value: Any, limit: int) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ValueError(f"a list is missing or longer than {limit:,}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise ValueError(f"{value!r:.40} is not a whole number from 0")
    return value


def _hex(value: Any, digits: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise ValueError(f"{value!r:.40} is not {digits} hexadecimal digits")
    return value


def _one_of(value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ValueError(f"{value!r:.40} is none of {', '.join(known)}")
    return value
