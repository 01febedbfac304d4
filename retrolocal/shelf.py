"""Between a session and the library: texts that have been read are found, continued and kept.

A shelf knows how one session computes (its provenance) and which entries it has open. Reading goes
on when the library cannot take it: the user is told, once, and the text is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import kept
from .context import Context
from .errors import DamagedError, DataError, IdentityError, LibraryError
from .generate import Progress
from .ingest import Document, Options, Unread, open_document
from .ingest.source import STDIN
from .ingest.token_map import TokenMap
from .library import (
    DocumentText,
    Entry,
    FileId,
    Identity,
    Library,
    Prefix,
    Segment,
    Writer,
    child_key,
    open_loose,
    root_key,
    write_loose,
)
from .library.entry import CHECKED_WHOLE
from .library.reading import AGAIN
from .provenance import Provenance

MENDING = "from there on the document is read again"
"""What is done about damage."""
OUTGROWN = "the corpus is now long enough for the index: it is read anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """Where and how a session keeps the texts that it reads."""

    library: Library
    corpus: str | None = None
    """Texts are kept under this name; None: under those of the documents."""
    grows: bool = True
    """Whether other documents than its own become part of the corpus; False: they are kept under
    their own names, the corpus stays as it is."""
    required: bool = False
    """Whether a text that cannot be kept is an error, or a remark and read all the same."""
    checked: bool = False
    """Whether every byte of what is found is checked, however long that takes: what is damaged is
    read again."""
    model: str | None = None
    """What users call the model; kept with what is read."""
    tell: Callable[[str], None] = lambda line: None
    """Takes remarks, one line each."""


class Shelf:
    def __init__(self, keeping: Keeping, made: Provenance) -> None:
        self._library, self._tell = keeping.library, keeping.tell
        self._told: set[str] = set()
        self._corpus, self._required = keeping.corpus, keeping.required
        self._grows = keeping.grows
        self._made, self._wanted = made, made.wanted
        self._entries: dict[tuple[FileId, ...], Entry] = {}
        self._checked = keeping.checked
        self._facts = {} if keeping.model is None else {"model": keeping.model}
        self._distrusted: set[tuple[FileId, ...]] = set()
        """Texts of which something was found damaged when it was touched."""

    def head(self, documents: Sequence[Document]) -> tuple[list[int], TokenMap] | None:
        """Token ids of the head with these documents and their places, if the library has it.

        Raises IdentityError for a corpus that was read with another model or other settings.
        """
        entry = self._find(documents)
        if entry is None:
            return None
        parts = [part.token_ids() for part in (*entry.segments(), entry.tail)]
        return torch.cat(parts).tolist(), TokenMap(documents, entry.page_map)

    def known_tokens(self, opening: str, head: Sequence[int]) -> int:
        """How many tokens at the beginning of a head, behind `opening`, are kept."""
        identity = self._made.reading(opening, len(head))
        try:
            with self._library.longest_prefix(identity, head) as known:
                return known.tokens
        except LibraryError:
            # It is told where the head is read.
            return 0

    def read(
        self,
        context: Context,
        documents: Sequence[Document],
        *,
        opening: str,
        page_map: Callable[[], bytes],
        expected_bytes: Callable[[int], int],
    ) -> Generator[Progress, None, None]:
        """Reads the head of `context`, these documents, as far as it is not kept; keeps the rest.

        `opening` stands before the documents; of a head of which `known` tokens are kept the rest
        takes about `expected_bytes(known)` on the disk.
        Raises LibraryError for what cannot be kept, if it must be.
        """
        if context.head_is_read or not documents:
            yield from context.read_head()
            return
        if self._load_entry(context, documents):
            yield from context.read_head()
            return
        identity = self._made.reading(opening, context.head_tokens)
        with ExitStack() as stack:
            try:
                known = stack.enter_context(self._library.longest_prefix(identity, context.head))
                known = self._sound(known)
                outgrew = not known.tokens and self._outgrew(identity, context.head, documents)
            except LibraryError as error:
                self._failed(error)
                yield from context.read_head()
                return
            for line in known.damage:
                self._remark(_mended(line))
            if outgrew:
                self._remark(OUTGROWN)
            if known.tokens and context.tokens == 0:
                self._load(context, known.segments, known.tokens)
            writer = self._writer(identity, documents, known, expected_bytes(known.tokens))
            if writer is None:
                yield from context.read_head()
                return
            stack.enter_context(writer)
            keeper = _Keeper(writer, context, known, self._failed)
            yield from context.read_head(keeper.piece)
            keeper.finish(page_map)

    def keep_dialogue(self, context: Context, documents: Sequence[Document], path: Path) -> bool:
        """Writes what the caches hold behind the documents to `path`, in place of what was there.

        False where the library does not have the documents, or nothing was asked. Raises
        LibraryError when the disk does not take it.
        """
        head = self._kept_head(context, documents)
        if head is None or not context.head_is_read or not context.dialogue:
            return False
        key, parts = head
        grown = context.tokens - context.head_tokens
        tensors = kept.dialogue_tensors(context.caches, parts, grown)
        tensors |= context.saved()
        write_loose(path, key, tensors, {"tokens": context.tokens})
        return True

    def load_dialogue(
        self, context: Context, documents: Sequence[Document], path: Path, going_on: str
    ) -> bool:
        """A new context becomes the one that was written to `path`; False if there is none that
        `going_on` continues, with these documents, this model and these settings.

        The context is then not to be used. Raises DamagedError.
        """
        head = self._kept_head(context, documents)
        dialogue = None if head is None else open_loose(path)
        if head is None or dialogue is None or dialogue.key != head[0]:
            return False
        tokens = int(dialogue.facts["tokens"])
        whole = _checked_whole(head[1])
        kept.load_dialogue(context.caches, head[1], dialogue, tokens, checked=whole)
        context.resumed(tokens, dialogue.load("dialogue"), dialogue.load("waiting"))
        return context.leads_to(going_on)

    def distrusted(self, documents: Sequence[Document]) -> bool:
        """Whether something of these was found damaged when it was touched.

        Next time every byte is checked, and what is not as it was written is read again.
        """
        files = _files(documents)
        entry = self._entries.get(files)
        if entry is None or not any(part.damaged for part in (*entry.segments(), entry.tail)):
            return False
        self._distrusted.add(files)
        self._entries.pop(files).close()
        return True

    def close(self) -> None:
        """Lets go of the entries; what was loaded from them stays valid."""
        for entry in self._entries.values():
            entry.close()
        self._entries.clear()

    def _find(self, documents: Sequence[Document]) -> Entry | None:
        files = _files(documents)
        if files in self._entries:
            return self._entries[files]
        try:
            entry = self._named_like(documents, self._open(files))
            if entry is not None:
                _check(entry, whole=self._checked or files in self._distrusted)
        except DamagedError as error:
            self._remark(_mended(str(error)))
            return None
        except IdentityError:
            raise
        except LibraryError as error:
            self._failed(error)
            return None
        if entry is not None:
            self._entries[files] = entry
        return entry

    def _open(self, files: tuple[FileId, ...]) -> Entry | None:
        if self._corpus is None or not self._of_corpus(files):
            return self._library.find_files(files, self._wanted)
        if not any(m.state == "complete" for m in self._library.catalogue().named(self._corpus)):
            return None
        entry = self._library.open(self._corpus, self._wanted, "corpus")
        if tuple(FileId(d.digest, d.extractor) for d in entry.documents) == files:
            return entry
        entry.close()
        return None

    def _named_like(self, documents: Sequence[Document], entry: Entry | None) -> Entry | None:
        """What was read from standard input is called like the file that it is found as."""
        if entry is None or entry.kind == "corpus":
            return entry
        names = [
            document.name if stored.name == STDIN else stored.name
            for document, stored in zip(documents, entry.documents, strict=True)
        ]
        if names == [stored.name for stored in entry.documents]:
            return entry
        entry.close()
        # Where that cannot be now, because it is open elsewhere, it is called so another time.
        with suppress(LibraryError):
            self._library.rename(entry.key, names)
        return self._open(_files(documents))

    def _of_corpus(self, files: tuple[FileId, ...]) -> bool:
        """Whether these are the corpus, or what it becomes."""
        if self._grows or self._corpus is None:
            return self._corpus is not None
        named = self._library.catalogue().named(self._corpus)
        return any(
            manifest.kind == "corpus"
            and tuple(FileId(d.digest, d.extractor) for d in manifest.documents) == files
            for manifest in named
        )

    def _load_entry(self, context: Context, documents: Sequence[Document]) -> bool:
        """Whether the library has the head of `context`, which is loaded then."""
        files = _files(documents)
        entry = self._entries.get(files)
        if entry is None or context.tokens or entry.tokens != context.head_tokens:
            return False
        parts = (*entry.segments(), entry.tail)
        self._load(context, parts, entry.tokens, checked=_checked_whole(parts))
        return True

    def _kept_head(
        self, context: Context, documents: Sequence[Document]
    ) -> tuple[str, tuple[Segment, ...]] | None:
        """Key and parts of the head of `context`; None where the library does not have it."""
        identity = self._made.reading("", 0)
        parts: tuple[Segment, ...] = ()
        if documents:
            entry = self._find(documents)
            if entry is None or entry.tokens != context.head_tokens:
                return None
            identity, parts = entry.identity, (*entry.segments(), entry.tail)
        return child_key(root_key(identity), context.head), parts

    def _outgrew(
        self, identity: Identity, head: Sequence[int], documents: Sequence[Document]
    ) -> bool:
        """Whether what is kept of a corpus is of no use because it was shorter then."""
        if not identity.clustered or not self._of_corpus(_files(documents)):
            return False
        with self._library.longest_prefix(self._made.unclustered(identity), head) as shorter:
            return shorter.tokens > 0

    def _sound(self, known: Prefix) -> Prefix:
        """What of a prefix is as it was written."""
        for number, segment in enumerate(known.segments):
            try:
                segment.check()
                segment.forget_pages()
            except DamagedError as error:
                return Prefix(known.identity, known.segments[:number], (*known.damage, str(error)))
        return known

    def _load(
        self, context: Context, parts: Sequence[kept.Part], tokens: int, *, checked: bool = True
    ) -> None:
        kept.load(context.caches, parts, tokens, checked=checked)
        context.loaded(tokens)

    def _writer(
        self,
        identity: Identity,
        documents: Sequence[Document],
        known: Prefix,
        expected_bytes: int,
    ) -> Writer | None:
        corpus = self._corpus if self._of_corpus(_files(documents)) else None
        names = self._names(documents, None if corpus is not None else identity)
        texts = [
            DocumentText(
                name=name,
                digest=document.digest,
                extractor=document.extractor,
                text=document.text,
                outline=document.to_json(),
            )
            for name, document in zip(names, documents, strict=True)
        ]
        try:
            return self._library.write(
                identity,
                texts,
                corpus=corpus,
                prefix=known,
                expected_bytes=expected_bytes,
                facts=self._facts,
            )
        except LibraryError as error:
            self._failed(error)
            return None

    def _names(self, documents: Sequence[Document], identity: Identity | None) -> list[str]:
        """What is written again or continued as this document keeps its names, and standard input
        takes those that the library knows for its text. `identity` is None for a corpus: no
        document is what it continues."""
        names = [document.name for document in documents]
        with suppress(LibraryError):
            for manifest in self._library.entries_of(_files(documents)):
                names = [
                    stored.name
                    if stored.name != STDIN and (name == STDIN or manifest.identity == identity)
                    else name
                    for name, stored in zip(names, manifest.documents, strict=True)
                ]
        return names

    def _failed(self, error: LibraryError) -> None:
        if self._required:
            raise error
        self._remark(f"not kept in the library: {error}")

    def _remark(self, line: str) -> None:
        """Tells it, once."""
        if line not in self._told:
            self._told.add(line)
            self._tell(line)


class _Keeper:
    """Puts pieces into the library as they are read, until one does not fit."""

    def __init__(
        self,
        writer: Writer,
        context: Context,
        known: Prefix,
        failed: Callable[[LibraryError], None],
    ) -> None:
        self._writer, self._context, self._failed = writer, context, failed
        self._pieces, self._tokens = len(known.segments), known.tokens
        self._clustered = known.identity.clustered
        self._going = True

    def piece(self, tokens: int) -> None:
        tensors = self._piece(tokens) if self._going and tokens > self._tokens else None
        if tensors is None:
            return
        ids = self._context.head[self._tokens : tokens]
        try:
            self._writer.append_segment(np.array(ids), tensors)
            if any(cache.statistics().file_bytes for cache in self._context.caches):
                with self._writer.saved() as saved:
                    kept.moved(self._context.caches, self._pieces, saved)
        except LibraryError as error:
            self._going = False
            self._failed(error)
            return
        self._pieces, self._tokens = self._pieces + 1, tokens

    def finish(self, page_map: Callable[[], bytes]) -> None:
        if not self._going:
            return
        tensors = self._tail()
        try:
            ids = np.array(self._context.head[self._tokens :], dtype=np.int64)
            self._writer.finish(ids, tensors, page_map())
        except LibraryError as error:
            self._failed(error)

    def _piece(self, tokens: int) -> dict[str, Tensor] | None:
        if self._clustered:
            return kept.piece_tensors(self._context.caches, self._pieces)
        return kept.more_tensors(self._context.caches, self._tokens, tokens)

    def _tail(self) -> dict[str, Tensor]:
        if self._clustered:
            return kept.tail_tensors(self._context.caches, self._pieces)
        context = self._context
        return kept.more_tensors(context.caches, self._tokens, context.head_tokens)


def document_of(
    path: str | Path, options: Options | None = None, library: Library | None = None
) -> Document:
    """The text of the file at `path`, which is not extracted again if the library has it.

    Raises DocumentError.
    """
    with open_document(path, options) as unread:
        known = None
        if library is not None:
            # A library that cannot be used is told of when the text is to be kept.
            with suppress(LibraryError):
                known = known_document(library, unread)
        return known or unread.read()


def corpus_documents(library: Library, name: str) -> list[Document]:
    """The documents of the corpus `name`; raises LibraryError when there is none."""
    return [Document.from_json(text.outline, text.text) for text in library.corpus_texts(name)]


def known_document(library: Library, unread: Unread) -> Document | None:
    """The document of a file whose text the library has, for whatever model."""
    stored = library.find_text(unread.digest, unread.extractor)
    if stored is None:
        return None
    try:
        return replace(Document.from_json(stored.outline, stored.text), name=unread.name)
    except DataError:
        return None


def _check(entry: Entry, *, whole: bool) -> None:
    """Every byte of an entry up to `CHECKED_WHOLE` bytes; of a larger one, unless the `whole` is
    wanted, all but the keys and values, which stay on the disk until they are needed and are
    checked then. Its texts too where the `whole` is wanted.

    Raises LibraryError, for damage DamagedError; the entry is closed then.
    """
    parts = (*entry.segments(), entry.tail)
    every_byte = whole or _checked_whole(parts)
    try:
        for number in range(len(entry.documents) if whole else 0):
            entry.text(number)
            entry.outline(number)
        for part in parts:
            for name in part.names:
                if every_byte or name.rpartition(".")[2] not in kept.MAPPED:
                    part.check(name)
            part.forget_pages()
    except LibraryError:
        entry.close()
        raise


def _mended(damage: str) -> str:
    """What is said of damage where nobody has to do anything about it."""
    return damage.removesuffix(AGAIN) + MENDING if damage.endswith(AGAIN) else damage


def _checked_whole(parts: Sequence[Segment]) -> bool:
    """Whether every byte of an entry is checked when it is opened."""
    return sum(part.file.bytes for part in parts) <= CHECKED_WHOLE


def _files(documents: Sequence[Document]) -> tuple[FileId, ...]:
    return tuple(FileId(document.digest, document.extractor) for document in documents)
