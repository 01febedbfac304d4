"""The decoder loop with a fake model: what it reads, what it yields, where it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.errors import Interrupted
from retrolocal.generate import (
    End,
    Piece,
    generate_text,
    generate_tokens,
    prefill,
    stream_text,
)


class CountingCache:
    """Remembers the positions it has seen."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def snapshot(self) -> int:
        return len(self.seen)

    def restore(self, snapshot: int) -> None:
        del self.seen[snapshot:]


class CountingModel:
    """The next token is always the last one plus one."""

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Sequence[CountingCache],
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        for number, cache in enumerate(caches):
            if on_layer is not None:
                on_layer(number)
            cache.seen += positions.tolist()
        logits = torch.zeros(wanted, 100)
        if wanted:
            logits[-1, int(token_ids[-1]) + 1] = 1.0
        return logits


class Letters:
    """Token i is the i-th letter; text comes out one token late, as with split characters."""

    def __init__(self) -> None:
        self.held = ""

    def push(self, token_id: int) -> str:
        out, self.held = self.held, chr(ord("a") + token_id)
        return out

    def finish(self) -> str:
        return self.held


def drain(reading: Iterator[object]) -> Tensor:
    while True:
        try:
            next(reading)
        except StopIteration as finished:
            return finished.value  # type: ignore[no-any-return]


def test_prefill_reads_in_chunks_and_returns_the_last_logits() -> None:
    caches = [CountingCache(), CountingCache()]
    reading = prefill(CountingModel(), caches, torch.arange(10), 5, chunk_tokens=4)
    assert [(p.done, p.total) for p in reading] == [(4, 10), (8, 10), (10, 10)]
    assert caches[0].seen == caches[1].seen == list(range(5, 15))
    logits = drain(prefill(CountingModel(), caches, torch.arange(10), 15, chunk_tokens=4))
    assert logits.shape == (1, 100)
    assert int(logits.argmax()) == 10
    read = prefill(CountingModel(), caches, torch.arange(10), 25, chunk_tokens=4, wanted=0)
    assert drain(read).shape == (0, 100)


def test_an_interrupted_chunk_is_taken_back() -> None:
    caches = [CountingCache(), CountingCache()]
    calls = 0

    def stopped() -> bool:
        nonlocal calls
        calls += 1
        return calls == 6

    reading = prefill(CountingModel(), caches, torch.arange(10), 0, chunk_tokens=4, stopped=stopped)
    with pytest.raises(Interrupted):
        list(reading)
    assert caches[0].seen == caches[1].seen == list(range(8))


def test_the_last_token_is_not_in_the_caches() -> None:
    cache, logits = CountingCache(), torch.zeros(100)
    logits[7] = 1.0
    tokens = list(
        generate_tokens(
            CountingModel(),
            [cache],
            logits,
            3,
            draw=lambda row: int(row.argmax()),
            max_new_tokens=4,
        )
    )
    assert tokens == [7, 8, 9, 10]
    assert cache.seen == [3, 4, 5]


def test_end_of_sequence_is_not_text() -> None:
    events = list(stream_text(iter([0, 1, 25, 2]), Letters(), end_ids={25}))
    assert generate_text(iter(events)) == "ab"
    assert events[-1] == End("eos", 3)


def test_length_flushes_what_was_held() -> None:
    events = list(stream_text(iter([0, 1, 2]), Letters()))
    assert [e.text for e in events if isinstance(e, Piece)] == ["a", "b", "c"]
    assert events[-1] == End("length", 3)


def test_stopped_keeps_the_text_so_far() -> None:
    produced: list[int] = []

    def tokens() -> Iterator[int]:
        for token in range(20):
            produced.append(token)
            yield token

    events = list(stream_text(tokens(), Letters(), stopped=lambda: len(produced) == 5))
    assert generate_text(iter(events)) == "abcde"
    assert events[-1] == End("interrupted", 5)


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
def test_stop_strings_cut_where_they_begin(text: str, stops: list[str]) -> None:
    class Plain:
        def push(self, token_id: int) -> str:
            return chr(token_id)

        def finish(self) -> str:
            return ""

    events = list(stream_text((ord(c) for c in text), Plain(), stop_strings=stops))
    told = generate_text(iter(events))
    # The first stop string to be complete decides; of several complete at once, the leftmost.
    expected, reason = text, "length"
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            expected, reason = text[: min(starts)], "stop"
            break
    assert told == expected
    last = events[-1]
    assert isinstance(last, End)
    assert last.reason == reason


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    class Plain:
        def push(self, token_id: int) -> str:
            return chr(token_id)

        def finish(self) -> str:
            return ""

    events = stream_text((ord(c) for c in "aab"), Plain(), stop_strings=["ac"])
    assert [e.text for e in events if isinstance(e, Piece)] == ["a", "ab"]


@pytest.mark.parametrize(("end_ids", "text"), [(set(), "ab"), ({25}, "ab\ufffd")])
def test_half_a_character_at_the_limit_is_not_text(end_ids: set[int], text: str) -> None:
    class Cut(Letters):
        def finish(self) -> str:
            return super().finish() + "\ufffd"

    tokens = [0, 1, 25] if end_ids else [0, 1]
    assert generate_text(stream_text(iter(tokens), Cut(), end_ids=end_ids)) == text
