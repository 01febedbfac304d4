"""Between a session and the library: texts that have been read are found, continued and kept.

A shelf knows how one session computes (its identity) and which entries it has open. Reading goes on
when the library cannot take it: the user is told, once, and the text is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch

from . import kept
from .context import Context
from .errors import DamagedError, DataError, LibraryError
from .generate import Progress
from .ingest import Document, Unread
from .library import DocumentText, Entry, FileId, Identity, Library, Prefix, Writer


class Shelf:
    def __init__(
        self,
        library: Library,
        identity: Identity,
        *,
        tell: Callable[[str], None],
        corpus: str | None = None,
        must_keep: bool = False,
    ) -> None:
        """`identity` as settled today, but for its prefix. With `corpus` texts are kept under that
        name; with `must_keep` a text that cannot be kept is an error, else a remark."""
        self._library = library
        self._identity = identity
        self._tell = tell
        self._corpus = corpus
        self._must_keep = must_keep
        self._entries: dict[tuple[FileId, ...], Entry] = {}

    def ids(self, documents: Sequence[Document], wanted: Identity) -> list[int] | None:
        """Token ids of the head with these documents if the library has it as `wanted`."""
        entry = self._find(documents, wanted)
        if entry is None:
            return None
        parts = [part.token_ids() for part in (*entry.segments(), entry.tail)]
        ids: list[int] = torch.cat(parts).tolist()
        return ids

    def read(
        self,
        context: Context,
        documents: Sequence[Document],
        prefix_text: str,
        page_map: Callable[[], bytes],
    ) -> Generator[Progress, None, None]:
        """Reads the head of `context`, these documents, as far as it is not kept; keeps the rest.

        Raises LibraryError for what cannot be kept, if it must be.
        """
        if context.head_is_read or not documents:
            yield from context.read_head()
            return
        entry = self._entries.get(_files(documents))
        if entry is not None and context.tokens == 0 and entry.tokens == context.head_tokens:
            self._load(context, (*entry.segments(), entry.tail), entry.tokens)
            yield from context.read_head()
            return
        identity = replace(self._identity, prefix=prefix_text)
        with ExitStack() as stack:
            known = stack.enter_context(self._library.longest_prefix(identity, context.head))
            for line in known.damage:
                self._tell(line)
            if known.tokens and context.tokens == 0:
                self._load(context, known.segments, known.tokens)
            writer = self._writer(identity, documents, known)
            if writer is None:
                yield from context.read_head()
                return
            stack.enter_context(writer)
            keeper = _Keeper(writer, context, known, self._failed)
            yield from context.read_head(keeper.piece)
            keeper.finish(page_map)

    def close(self) -> None:
        """Lets go of the entries; what was loaded from them stays valid."""
        for entry in self._entries.values():
            entry.close()
        self._entries.clear()

    def _find(self, documents: Sequence[Document], wanted: Identity) -> Entry | None:
        files = _files(documents)
        if files in self._entries:
            return self._entries[files]
        try:
            entry = self._open(files, wanted)
        except DamagedError as error:
            self._tell(f"{error}; reading it again")
            return None
        if entry is not None:
            self._entries[files] = entry
        return entry

    def _open(self, files: tuple[FileId, ...], wanted: Identity) -> Entry | None:
        if self._corpus is None:
            return self._library.find_files(files, wanted)
        try:
            entry = self._library.open(self._corpus, wanted, "corpus")
        except DamagedError:
            raise
        except LibraryError:
            return None
        if tuple(FileId(d.digest, d.extractor) for d in entry.documents) == files:
            return entry
        entry.close()
        return None

    def _load(self, context: Context, parts: Sequence[kept.Stored], tokens: int) -> None:
        kept.load(context.caches, parts, tokens)
        context.loaded(tokens)

    def _writer(
        self, identity: Identity, documents: Sequence[Document], known: Prefix
    ) -> Writer | None:
        texts = [
            DocumentText(
                name=document.name,
                digest=document.digest,
                extractor=document.extractor,
                text=document.text,
                outline=document.to_json(),
            )
            for document in documents
        ]
        try:
            return self._library.write(identity, texts, corpus=self._corpus, prefix=known)
        except LibraryError as error:
            self._failed(error)
            return None

    def _failed(self, error: LibraryError) -> None:
        if self._must_keep:
            raise error
        self._tell(f"not kept in the library: {error}")


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
        self._going = True

    def piece(self, tokens: int) -> None:
        tensors = kept.piece_tensors(self._context.caches, self._pieces) if self._going else None
        if tensors is None:
            return
        ids = self._context.head[self._tokens : tokens]
        try:
            self._writer.append_segment(np.array(ids), tensors)
        except LibraryError as error:
            self._going = False
            self._failed(error)
            return
        self._pieces, self._tokens = self._pieces + 1, tokens

    def finish(self, page_map: Callable[[], bytes]) -> None:
        if not self._going:
            return
        tensors = kept.tail_tensors(self._context.caches, self._pieces)
        try:
            ids = np.array(self._context.head[self._tokens :], dtype=np.int64)
            self._writer.finish(ids, tensors, page_map())
        except LibraryError as error:
            self._failed(error)


def known_document(library: Library, unread: Unread) -> Document | None:
    """The document of a file whose text the library has, for whatever model."""
    stored = library.find_text(unread.digest, unread.extractor)
    if stored is None:
        return None
    try:
        return replace(Document.from_json(stored.outline, stored.text), name=unread.name)
    except DataError:
        return None


def _files(documents: Sequence[Document]) -> tuple[FileId, ...]:
    return tuple(FileId(document.digest, document.extractor) for document in documents)
