"""The library: documents that have been read once, kept on disk with their clustered KV cache.

It stores what it is given and gives it back unchanged, or says in one line why not; it knows no
model and no clustering, and no torch before a tensor is asked for. What lies on disk is
format.md. In short:

    library = Library()                                   # the user's; Library(folder) elsewhere
    entry = library.find_file(digest, extractor, wanted)  # a document read before, or None
    entry = library.open("name or key", wanted)           # raises IdentityError naming the fields

    with library.longest_prefix(identity, token_ids) as prefix:   # what is there already
        with library.write(identity, documents, prefix=prefix) as writer:
            writer.append_segment(ids, {"layers.0.kv": ...}, facts)   # on disk when it returns
            writer.finish(tail_ids, tail_tensors, page_map)

An `Entry` and a `Prefix` hold their segments open: memory-mapped, checked on demand, and safe from
`gc` until closed. One process writes at a time.
"""

from __future__ import annotations

from .catalogue import Catalogue, FileId
from .chain import Prefix
from .cleaning import Cleaned
from .digests import file_digests
from .documents import DocumentText
from .entry import Entry
from .identity import Difference, Identity, child_key, differences, root_key
from .library import Library, require_corpus_name
from .loose import open_loose, write_loose
from .manifest import Manifest, StoredDocument
from .segment import Segment
from .verification import Verified
from .writer import Writer

__all__ = [
    "Catalogue",
    "Cleaned",
    "Difference",
    "DocumentText",
    "Entry",
    "FileId",
    "Identity",
    "Library",
    "Manifest",
    "Prefix",
    "Segment",
    "StoredDocument",
    "Verified",
    "Writer",
    "child_key",
    "differences",
    "file_digests",
    "open_loose",
    "require_corpus_name",
    "root_key",
    "write_loose",
]
