from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrolocal.errors import DataError, DocumentError
from retrolocal.ingest import Chapter, Document, Page
from retrolocal.ingest.token_map import MAX_CHARACTERS, SPAN, Place, TokenMap

DOCUMENT = Document(
    name="a",
    text="front one two",
    pages=(Page(1, 0, 5), Page(2, 6, 6), Page(3, 6, 13)),
    chapters=(Chapter("One", 6, 9), Chapter("Two", 10, 13)),
    digest="",
    notes=(),
)
PLAIN = Document(name="b", text="plain", pages=(), digest="", notes=())


def offsets(*spans: tuple[int, int]) -> NDArray[np.uint32]:
    return np.array(spans, np.uint32).reshape(-1, 2)


def test_places() -> None:
    places = TokenMap(())
    places.append_other(2)
    assert places.append_document(DOCUMENT, offsets((0, 5), (5, 9), (9, 13))) == 0
    places.append_other(1)
    assert places.append_document(PLAIN, offsets((0, 5))) == 1
    assert [places.lookup(token) for token in range(-1, len(places) + 1)] == [
        None,
        None,
        None,
        Place(0, 1, None, 0, 5),
        Place(0, 1, None, 5, 9),
        Place(0, 3, "One", 9, 13),
        None,
        Place(1, None, None, 0, 5),
        None,
    ]


def test_a_token_takes_twelve_bytes() -> None:
    places = TokenMap(())
    places.append_document(PLAIN, offsets(*[(0, 1)] * 1000))
    assert SPAN.itemsize <= 16
    assert len(places.tobytes()) == 1000 * SPAN.itemsize


@dataclass
class Model:
    """What a map must say, as a plain list."""

    records: list[tuple[int, int, int] | None] = field(default_factory=list)
    documents: int = 0


SPANS = st.lists(st.tuples(st.integers(0, MAX_CHARACTERS), st.integers(0, 9)), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("document"), SPANS),
        st.tuples(st.just("other"), st.integers(0, 3)),
        st.tuples(st.just("truncate"), st.floats(0, 1)),
        st.tuples(st.just("reopen"), st.none()),
        st.tuples(st.just("grow"), st.none()),
    ),
    max_size=12,
)


@given(STEPS)
@settings(deadline=None)
def test_any_history_of_a_map(steps: list[tuple[str, object]]) -> None:
    places, model, file = TokenMap(()), Model(), b""
    for step, argument in steps:
        if step == "document":
            assert isinstance(argument, list)
            spans = [(s, min(s + n, MAX_CHARACTERS)) for s, n in argument]
            assert places.append_document(PLAIN, offsets(*spans)) == model.documents
            model.records += [(model.documents, s, e) for s, e in spans]
            model.documents += 1
        elif step == "other":
            assert isinstance(argument, int)
            places.append_other(argument)
            model.records += [None] * argument
        elif step == "truncate":
            assert isinstance(argument, float)
            tokens = round(argument * len(places))
            places.truncate(tokens)
            del model.records[tokens:]
            file = file[: tokens * SPAN.itemsize]
        else:
            # A file of the map only ever grows at its end.
            file += places.tobytes(len(file) // SPAN.itemsize)
            assert file == places.tobytes()
            if step == "reopen":
                places = TokenMap([PLAIN] * model.documents, file)
        assert len(places) == len(model.records)
    for token, record in enumerate(model.records):
        place = places.lookup(token)
        found = None if place is None else (place.document, place.start, place.end)
        assert found == record
    middle = len(places) // 2
    assert places.spans(middle).tobytes() == places.tobytes()[middle * SPAN.itemsize :]
    assert len(places.spans(0, middle)) == middle


def test_a_mapped_file(tmp_path: Path) -> None:
    first = TokenMap(())
    first.append_document(DOCUMENT, offsets((0, 5), (6, 9)))
    path = tmp_path / "pages"
    path.write_bytes(first.tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    places = TokenMap([DOCUMENT], memoryview(mapped))
    places.append_document(PLAIN, offsets((1, 2)))
    assert [places.lookup(n) for n in range(3)] == [
        Place(0, 1, None, 0, 5),
        Place(0, 3, "One", 6, 9),
        Place(1, None, None, 1, 2),
    ]
    with path.open("ab") as file:
        file.write(places.tobytes(2))
    assert TokenMap([DOCUMENT, PLAIN], path.read_bytes()).lookup(2) == places.lookup(2)
    places.truncate(0)
    assert path.read_bytes()[:24] == first.tobytes()


def test_what_does_not_fit_is_refused_and_nothing_is_added() -> None:
    places = TokenMap(())
    spans = np.array([(0, 1), (1, MAX_CHARACTERS + 1)], np.int64)
    with pytest.raises(DocumentError, match=r"of 4,294,967,296 characters cannot be mapped; split"):
        places.append_document(PLAIN, spans)
    assert len(places) == 0
    assert places.append_document(PLAIN, spans[:1]) == 0


def test_damage_is_named() -> None:
    with pytest.raises(DataError, match="13 bytes, not a multiple of 12"):
        TokenMap((), bytes(13))
    with pytest.raises(DataError, match="names document 1 of 1"):
        TokenMap([PLAIN], np.array([(1, 0, 0)], SPAN).tobytes()).lookup(0)
