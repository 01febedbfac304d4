"""A second reader, made from format.md alone: what the specification says is what is on disk."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash

from retrolocal.library import Library, root_key
from retrolocal.library.identity import child_key, tail_key

SPECIFICATION = Path(__file__).parents[3] / "retrolocal/library/format.md"


def b2(person: str, size: int, data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=size, person=person.encode()).hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_manifest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    line, trailer, rest = data.split(b"\n")
    magic, version, length, checksum = trailer.decode().split(" ")
    assert (magic, version, int(length), rest) == ("retrolocal-manifest", "1", len(line), b"")
    assert xxhash.xxh3_128_hexdigest(data[: data.rindex(b" ") + 1]) == checksum
    manifest = json.loads(line)
    assert canonical(manifest) == line
    assert path.name == manifest["key"] + (
        ".json" if manifest["state"] == "complete" else ".running.json"
    )
    return dict(manifest)


def read_tensors(root: Path, kind: str, file: dict[str, Any], parent: str) -> dict[str, bytes]:
    """Name -> bytes of the tensors of a segment or tail, every rule of section 6 checked."""
    path = root / {"segment": "segments", "tail": "tails"}[kind] / f"{file['key']}.safetensors"
    content = path.read_bytes()
    assert len(content) == file["bytes"]
    (length,) = struct.unpack("<Q", content[:8])
    start = 8 + length
    assert start % 4096 == 0
    assert xxhash.xxh3_128_hexdigest(content[:start]) == file["header"]
    text = content[8:start].rstrip(b" ")
    header = json.loads(text)
    assert json.dumps(header, separators=(",", ":")).encode() == text
    facts = json.loads(header.pop("__metadata__")["retrolocal"])
    data = content[start:]
    sums = [xxhash.xxh3_128_hexdigest(data[i : i + 2**20]) for i in range(0, len(data), 2**20)]
    assert facts["chunks"] == "".join(sums)
    tensors, end = {}, 0
    for number, (name, entry) in enumerate(header.items()):
        begin, next_end = entry["data_offsets"]
        assert begin == end
        end = next_end
        if name.startswith("pad."):
            assert name == f"pad.{number}"
            assert not any(data[begin:end])
            continue
        assert begin % (4096 if end - begin >= 65536 else 64) == 0
        tensors[name] = data[begin:end]
    assert end == len(data)
    ids = tensors["token_ids"]
    assert len(ids) == 4 * file["tokens"]
    person = {"segment": "retrolocal seg", "tail": "retrolocal tail"}[kind]
    assert file["key"] == b2(person, 32, bytes.fromhex(parent) + ids)
    assert (facts["format"], facts["kind"], facts["key"]) == (1, kind, file["key"])
    assert (facts["parent"], facts["tokens"]) == (parent, file["tokens"])
    return tensors


def read_object(root: Path, stored: dict[str, Any]) -> bytes:
    data = (root / "objects" / stored["name"]).read_bytes()
    assert stored == {
        "bytes": len(data),
        "checksum": xxhash.xxh3_128_hexdigest(data),
        "name": b2("", 32, data),
    }
    return data


def test_a_stranger_reads_a_library(library: Library, sample: ModuleType) -> None:
    documents = (sample.document("a.txt", "ä\n"), sample.document("b.txt", "\U0001f600"))
    books = [
        sample.Book(bytes_per_token=40_000, documents=documents),
        sample.Book(bytes_per_token=40_000, corpus="shelf", segments=1, rest=0),
    ]
    for book in books:
        book.ingest(library)
        root = library.path
        assert (root / "FORMAT").read_text() == "retrolocal library 1\n"
        kind = "document" if book.corpus is None else "corpus"
        manifests = [read_manifest(path) for path in (root / "entries").iterdir()]
        [manifest] = [manifest for manifest in manifests if manifest["kind"] == kind]
        parent = b2("retrolocal root", 32, canonical(manifest["identity"]))
        files = [[document["digest"], document["extractor"]] for document in manifest["documents"]]
        name = ["corpus", "shelf"] if book.corpus else ["document", parent, files]
        assert manifest["key"] == b2("retrolocal entry", 16, canonical(name))
        for number, file in enumerate(manifest["segments"]):
            tensors = read_tensors(root, "segment", file, parent)
            wanted = book.tensors(number)
            assert list(tensors) == ["token_ids", *wanted]
            assert tensors["layers.0.kv"] == wanted["layers.0.kv"].numpy().tobytes()
            parent = file["key"]
        read_tensors(root, "tail", manifest["tail"], parent)
        assert read_object(root, manifest["page_map"]) == book.page_map
        for document, given in zip(manifest["documents"], book.texts, strict=True):
            assert read_object(root, document["text"]).decode() == given.text
            assert json.loads(read_object(root, document["outline"])) == given.outline


def test_the_example_of_the_specification(sample: ModuleType) -> None:
    example = SPECIFICATION.read_text("utf-8").partition("## 12. Example")[2]
    root, first, second, tail = re.findall(r"[0-9a-f]{64}", example)
    assert root == root_key(sample.IDENTITY)
    assert first == child_key(root, [1, 2, 70_000])
    assert second == child_key(first, [5])
    assert tail == tail_key(first, [])
    line = canonical(sample.IDENTITY.facts()).decode()
    assert line.replace("1" * 64, "T").replace("0" * 64, "W") in example
