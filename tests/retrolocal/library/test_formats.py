"""The bytes on disk: canonical JSON, keys, headers; what a hostile file may claim."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as some

from retrolocal.errors import DamagedError
from retrolocal.library import Difference, differences, root_key
from retrolocal.library.canonical import decode, encode
from retrolocal.library.identity import child_key, tail_key, token_bytes
from retrolocal.library.manifest import decode as decode_manifest
from retrolocal.library.tensor_file import (
    ChunkHasher,
    Header,
    TensorSpec,
    decode_header,
    encode_header,
    placed,
)

JSON = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(1 << 53), 1 << 53)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(some.characters()),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_comes_back(value: Any) -> None:
    assert decode(encode(value)) == value
    assert json.loads(encode(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1,"a":1}',
        b'"\xc3\xa9"',
        b"1.0e3",
        b"NaN",
        b"9007199254740993",
        b"[" * 40 + b"]" * 40,
        b"[" * 100_000,
        b"1 ",
        b"",
        b"\xff",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_any_other_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_keys_are_those_of_the_specification(sample: ModuleType) -> None:
    root = root_key(sample.IDENTITY)
    assert root == "2c71fb90c3df826b2a5bd1863de72566741432bc59e7bb97136c468deb7a8b22"
    first = child_key(root, [1, 2, 70_000])
    assert first == "f358947ec0983546ed013af34df7ab305c1883cc88055fb2a7491606799e24b3"
    assert (
        child_key(first, np.array([5], dtype=np.int64))
        == "9a5d0c7d1debf18b672545ca4b77678f177697c0a534bc98829a60d5de71bcf4"
    )
    assert tail_key(first, []) == "31e23bdc724554911a35423795d20711fd8ffc9424148d01887b3eb77270310b"


def test_keys_tell_apart_what_differs() -> None:
    one = "0" * 64
    keys = {
        child_key(one, [1, 2]),
        child_key(one, [1, 2, 0]),
        child_key(one, [2, 1]),
        child_key("1" + "0" * 63, [1, 2]),
        tail_key(one, [1, 2]),
        child_key(child_key(one, [1]), [2]),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("ids", [[-1], [1 << 31], [1.5], [[1]], ["a"]], ids=str)
def test_what_is_no_token_id(ids: Any) -> None:
    with pytest.raises(ValueError, match="token id"):
        token_bytes(ids)


def test_differences_name_nested_fields(sample: ModuleType) -> None:
    saved = replace(sample.IDENTITY, rope={"theta": 1e4, "scaling": {"factor": 2.0, "kind": "x"}})
    wanted = replace(sample.IDENTITY, rope={"theta": 1e4, "scaling": {"factor": 4.0}}, prefix="b")
    assert differences(saved, wanted) == (
        Difference("rope.scaling.factor", 2.0, 4.0),
        Difference("rope.scaling.kind", "x", None),
        Difference("prefix", "<s>[user]", "b"),
    )
    assert str(differences(saved, wanted)[0]) == "rope.scaling.factor (saved 2.0, now 4.0)"
    assert differences(saved, saved) == ()


SHAPES = some.lists(some.integers(0, 300), max_size=3).map(tuple)
TENSORS = some.lists(some.tuples(some.sampled_from(["U8", "BF16", "F32", "I64"]), SHAPES))


@given(some.integers(0, 9000), TENSORS)
def test_tensors_cover_the_data_without_holes(
    tokens: int, tensors: list[tuple[str, tuple[int, ...]]]
) -> None:
    specs = placed(tokens, [TensorSpec(f"t{i}", *what) for i, what in enumerate(tensors)])
    end = 0
    for spec in specs:
        assert spec.start == end
        end += spec.bytes
        if not spec.name.startswith("pad."):
            assert spec.start % (4096 if spec.bytes >= 65536 else 64) == 0
    header = made(tokens, specs)
    data = encode_header(header)
    assert len(data) % 4096 == 0
    assert decode_header(data, len(data) + end) == header


def made(tokens: int, specs: tuple[TensorSpec, ...], **changes: Any) -> Header:
    header = Header(
        kind="segment", key="a" * 64, parent="b" * 64, tokens=tokens, facts={}, tensors=specs
    )
    return replace(header, chunks="0" * 32 * header.chunk_count, **changes)


@given(some.lists(some.integers(0, 3 << 20), max_size=5))
def test_checksums_do_not_depend_on_the_parts(lengths: list[int]) -> None:
    data = bytes(sum(lengths))
    whole, parts = ChunkHasher(), ChunkHasher()
    whole.update(memoryview(data))
    start = 0
    for length in lengths:
        parts.update(memoryview(data)[start : start + length])
        start += length
    chunks = whole.chunks()
    assert parts.chunks() == chunks
    assert len(chunks) == 32 * -(-len(data) // (1 << 20))
    assert chunks[:32] == (xxhash.xxh3_128_hexdigest(data[: 1 << 20]) if data else "")


SPECS = placed(3, [TensorSpec("a", "F32", (5, 7)), TensorSpec("b", "U8", (100_000,))])


def header_text(change: Any) -> tuple[bytes, int]:
    """A header whose JSON was changed, correctly framed, and the length of its file."""
    data = encode_header(made(3, SPECS))
    content = json.loads(data[8:])
    facts = json.loads(content["__metadata__"]["retrolocal"])
    change(content, facts)
    content["__metadata__"]["retrolocal"] = encode(facts).decode()
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + SPECS[-1].start + SPECS[-1].bytes


def test_an_unchanged_header_is_taken() -> None:
    assert decode_header(*header_text(lambda content, facts: None)) == made(3, SPECS)


HOSTILE = {
    "overlap": lambda c, f: c["b"].update(data_offsets=[0, 100_000]),
    "beyond the file": lambda c, f: c["b"].update(shape=[200_000]),
    "negative": lambda c, f: c["b"].update(shape=[-100_000]),
    "product of 2**64": lambda c, f: c["b"].update(shape=[1 << 32, 1 << 32]),
    "shape of booleans": lambda c, f: c["b"].update(shape=[True]),
    "many dimensions": lambda c, f: c["b"].update(shape=[1] * 9),
    "unknown dtype": lambda c, f: c["b"].update(dtype="F7"),
    "dtype of another size": lambda c, f: c["b"].update(dtype="F32"),
    "dtype that is a list": lambda c, f: c["b"].update(dtype=[]),
    "field too many": lambda c, f: c["b"].update(more=1),
    "no offsets": lambda c, f: c["b"].pop("data_offsets"),
    "tensor that is a number": lambda c, f: c.update(b=1),
    "other order": lambda c, f: c.update(a=c.pop("a")),
    "metadata too much": lambda c, f: c["__metadata__"].update(more="1"),
    "tokens": lambda c, f: f.update(tokens=4),
    "tokens that are none": lambda c, f: f.update(tokens="3"),
    "too few checksums": lambda c, f: f.update(chunks=""),
    "too many checksums": lambda c, f: f.update(chunks=f["chunks"] * 2),
    "checksums in a list": lambda c, f: f.update(chunks=["0"] * 32),
    "another format": lambda c, f: f.update(format=2),
    "a format that is a list": lambda c, f: f.update(format=[1]),
    "another kind": lambda c, f: f.update(kind="model"),
    "key that is a path": lambda c, f: f.update(key="../../etc/passwd"),
    "facts that are none": lambda c, f: f.update(facts=[]),
    "field of facts too many": lambda c, f: f.update(more=1),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused(change: Any) -> None:
    data, size = header_text(change)
    with pytest.raises(ValueError, match=r"."):
        decode_header(data, size)


MANIFESTS = {
    "name with a line break": lambda m: m.update(name="a\nb"),
    "no documents": lambda m: m.update(documents=[]),
    "key that is a path": lambda m: m["segments"][0].update(key="../" * 21 + "x"),
    "negative size": lambda m: m["segments"][0].update(bytes=-1),
    "tokens true": lambda m: m["segments"][0].update(tokens=True),
    "segment twice": lambda m: m["segments"].append(m["segments"][0]),
    "segment without tokens": lambda m: m["segments"][0].update(tokens=0),
    "complete without a tail": lambda m: m.update(tail=None),
    "state": lambda m: m.update(state="done"),
    "state that is a list": lambda m: m.update(state=[]),
    "kind": lambda m: m.update(kind="model"),
    "field too many": lambda m: m.update(more=1),
    "field missing": lambda m: m.pop("facts"),
    "a list instead of an object": lambda m: m.update(tail=[]),
    "identity left open": lambda m: m["identity"].update(prefix=None),
    "identity of another format": lambda m: m["identity"].update(format=2),
    "identity field missing": lambda m: m["identity"].pop("rope"),
    "identity mistyped": lambda m: m["identity"].update(numerics="1"),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_hostile_manifest_is_refused(library: Any, sample: ModuleType, change: Any) -> None:
    sample.Book().ingest(library)
    [path] = (library.path / "entries").iterdir()
    facts = json.loads(path.read_bytes().partition(b"\n")[0])
    change(facts)
    body = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    sealed = body + f"\nretrolocal-manifest 1 {len(body)} ".encode()
    data = sealed + xxhash.xxh3_128_hexdigest(sealed).encode() + b"\n"
    with pytest.raises(DamagedError, match=r"^it is damaged \(.*\); remove it"):
        decode_manifest(data, "it")
