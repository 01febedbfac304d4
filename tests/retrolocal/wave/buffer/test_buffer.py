"""The wave buffer: what is fetched is what the slow tier holds, until the step ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrolocal.errors import StoreError
from retrolocal.wave.buffer.buffer import Fetched, WaveBuffer
from retrolocal.wave.buffer.policy import POLICIES
from retrolocal.wave.buffer.prefetch import Prefetcher
from retrolocal.wave.buffer.source import RamSource

from .conftest import FakeSource, bytes_at, layout, until

TOKEN = 64
LENGTHS = [[1, 3, 16, 8, 40, 0, 9, 1, 24, 5], [7, 1, 2, 16, 16, 12, 1, 30, 0, 4]]
HEADS, CLUSTERS = len(LENGTHS), len(LENGTHS[0])


class Rig:
    """A buffer over fakes, and the truth about them."""

    def __init__(
        self, segments: int = 4, *, threads: int = 0, capacity: int = 6000, queue: int = 256,
        seconds: float = 0.0, policy: str = "sieve",
    ) -> None:  # fmt: skip
        self.prefetcher = Prefetcher(threads, queue)
        self.buffer = WaveBuffer(HEADS, TOKEN, self.prefetcher, policy=policy)  # type: ignore[arg-type]
        self.offsets, self.lengths = layout([[n * TOKEN for n in row] for row in LENGTHS])
        size = int(self.lengths.sum())
        self.sources = [FakeSource(size, seed, seconds) for seed in range(segments)]
        for source in self.sources:
            self.buffer.append(source, self.offsets, self.lengths)
        self.buffer.allocate(capacity)

    @property
    def keys(self) -> list[int]:
        """Of all clusters that hold a token."""
        held = np.tile(self.lengths.ravel() > 0, len(self.sources))
        return np.flatnonzero(held).tolist()

    def key(self, segment: int, head: int, cluster: int) -> int:
        numbers = (np.array([number]) for number in (segment, head, cluster))
        return int(self.buffer.table.keys_of(*numbers)[0])

    def place(self, key: int) -> tuple[FakeSource, int]:
        """Source and offset of a cluster."""
        segment, inside = divmod(key, HEADS * CLUSTERS)
        return self.sources[segment], int(self.offsets.ravel()[inside])

    def fetch(self, keys: Sequence[int]) -> Fetched:
        return self.buffer.fetch(np.array(keys, np.int64))

    def prefetch(self, keys: Sequence[int]) -> None:
        self.buffer.prefetch(np.array(keys, np.int64))

    def check(self, keys: Sequence[int], step: Fetched) -> None:
        for key, address in zip(keys, step.addresses.tolist(), strict=True):
            source, offset = self.place(key)
            length = int(self.lengths.ravel()[key % (HEADS * CLUSTERS)])
            assert bytes_at(address, length) == source.content[offset : offset + length], key

    def reads(self, thread: str = "") -> int:
        return sum(name.startswith(thread) for one in self.sources for _, name in one.reads)

    def close(self) -> None:
        self.buffer.close()
        self.prefetcher.close()


@pytest.fixture
def rigs() -> Iterator[type[Rig]]:
    before = threading.active_count()
    yield Rig
    assert threading.active_count() == before, "a thread was left behind"


def test_what_was_fetched_is_there_and_is_found_again(rigs: type[Rig]) -> None:
    rig = rigs(capacity=100_000)
    keys = rig.keys[::3]
    with rig.fetch(keys) as step:
        rig.check(keys, step)
    assert rig.reads() == len(keys)
    assert {tuple(span) for one in rig.sources for span in one.announced}
    with rig.fetch(keys[::-1]) as step:
        rig.check(keys[::-1], step)
    assert rig.reads() == len(keys)
    found = rig.buffer.statistics()
    assert found.hits.sum() == found.misses.sum() == len(keys)
    first = sum(key % 20 < 10 for key in keys)
    assert found.hits.tolist() == found.misses.tolist() == [first, len(keys) - first]
    assert found.bytes_fetched == sum(int(rig.lengths.ravel()[key % 20]) for key in keys)
    rig.close()


@pytest.mark.parametrize("capacity", [0, 64, 700, 3000, 20_000])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_may_read_more_than_the_cache_holds(
    rigs: type[Rig], capacity: int, policy: str
) -> None:
    rig = rigs(capacity=capacity, policy=policy)
    assert rig.buffer.bytes <= capacity
    for _ in range(3):
        with rig.fetch(rig.keys) as step:
            rig.check(rig.keys, step)
    found = rig.buffer.statistics()
    assert found.homeless > 0
    assert found.hits.sum() + found.misses.sum() == 3 * len(rig.keys)
    rig.close()


def test_what_lies_in_memory_is_not_copied(rigs: type[Rig]) -> None:
    rig = rigs(segments=2)
    blocks = torch.randint(0, 255, (int(rig.lengths.sum()),), dtype=torch.uint8)
    rig.buffer.append(RamSource(blocks), rig.offsets, rig.lengths)
    near, far = rig.key(2, 1, 3), rig.key(1, 0, 2)
    with rig.fetch([near, far, near + 1]) as step:
        offsets = [blocks.data_ptr() + int(rig.offsets[1, c]) for c in (3, 4)]
        assert step.addresses[[0, 2]].tolist() == offsets
        assert (
            bytes_at(int(step.addresses[1]), 16 * TOKEN)
            == rig.sources[1].content[rig.place(far)[1] : rig.place(far)[1] + 16 * TOKEN]
        )
    with rig.fetch([near]) as step:
        assert step.addresses.tolist() == offsets[:1]
    assert rig.buffer.statistics().misses.sum() == 1
    rig.close()


def test_a_step_waits_only_for_what_was_predicted_wrong(rigs: type[Rig]) -> None:
    rig = rigs(threads=2, capacity=100_000)
    right, wrong, missed = rig.keys[:20], rig.keys[20:23], rig.keys[40:44]
    source, offset = rig.place(wrong[0])
    rig.prefetch(right)
    until(lambda: rig.buffer.statistics().predicted == 20 and not source.reading)
    gate = source.gates[offset] = threading.Event()
    rig.prefetch(wrong)
    until(lambda: source.reading)
    with rig.fetch([*right, *missed]) as step:
        rig.check([*right, *missed], step)
    assert rig.reads("MainThread") == 4
    found = rig.buffer.statistics()
    assert (found.hits.sum(), found.misses.sum(), found.foreseen) == (20, 4, 20)
    gate.set()
    with rig.fetch(wrong) as step:
        rig.check(wrong, step)
    assert rig.reads() == 27
    rig.close()


def test_a_fetch_waits_for_a_thread_that_has_begun(rigs: type[Rig]) -> None:
    rig = rigs(threads=1)
    key = rig.keys[2]
    source, offset = rig.place(key)
    gate = source.gates[offset] = threading.Event()
    rig.prefetch([key])
    until(lambda: source.reading)
    opening = threading.Timer(0.05, gate.set)
    opening.start()
    with rig.fetch([key]) as step:
        assert gate.is_set()
        rig.check([key], step)
    assert rig.reads() == 1
    assert rig.buffer.statistics().late.sum() == 1
    opening.join()
    rig.close()


def test_predictions_of_a_step_that_has_come_are_void(rigs: type[Rig]) -> None:
    rig = rigs(threads=1, capacity=100_000)
    source, offset = rig.place(rig.keys[0])
    gate = source.gates[offset] = threading.Event()
    rig.prefetch(rig.keys[:1])
    until(lambda: source.reading)
    rig.prefetch(rig.keys[30:50])
    with rig.fetch(rig.keys[60:61]) as step:
        rig.check(rig.keys[60:61], step)
    gate.set()
    until(lambda: rig.buffer.statistics().stale == 20)
    assert rig.reads() == 2
    rig.close()


def test_a_full_queue_refuses_and_nothing_waits(rigs: type[Rig]) -> None:
    rig = rigs(threads=1, queue=1)
    source, offset = rig.place(rig.keys[0])
    gate = source.gates[offset] = threading.Event()
    rig.prefetch(rig.keys[:1])
    until(lambda: source.reading)
    rig.prefetch(rig.keys[10:])
    assert rig.buffer.statistics().refused == len(rig.keys) - 10 - 32
    gate.set()
    rig.close()


@pytest.mark.parametrize("kind", [StoreError, ZeroDivisionError, KeyboardInterrupt], ids=str)
def test_a_fetch_that_cannot_read_leaves_nothing_behind(
    rigs: type[Rig], kind: type[BaseException]
) -> None:
    rig = rigs()
    keys = rig.keys[:12]
    source, offset = rig.place(keys[5])
    source.failing, source.raises = {offset}, kind
    for _ in range(40):
        with pytest.raises(kind, match="bad sector"):
            rig.fetch(keys)
    source.failing = set()
    with rig.fetch(keys) as step:
        rig.check(keys, step)
    rig.buffer.keep(0)
    rig.close()


def test_what_a_thread_cannot_read_is_raised_once_by_the_next_fetch(rigs: type[Rig]) -> None:
    rig = rigs(threads=1)
    bad, other = rig.keys[3], rig.keys[30]
    source, offset = rig.place(bad)
    source.failing = {offset}
    rig.prefetch([bad])
    until(lambda: source.reads and not source.reading and not rig.buffer._loading)
    with pytest.raises(StoreError, match="bad sector"):
        rig.fetch([other])
    with rig.fetch([other]) as step:
        rig.check([other], step)
    source.failing = set()
    with rig.fetch([bad]) as step:
        rig.check([bad], step)
    rig.close()


def test_what_a_thread_cannot_read_is_raised_by_who_waits_for_it(rigs: type[Rig]) -> None:
    rig = rigs(threads=1)
    source, offset = rig.place(rig.keys[3])
    source.failing, source.gates[offset] = {offset}, threading.Event()
    rig.prefetch([rig.keys[3]])
    until(lambda: source.reading)
    opening = threading.Timer(0.05, source.gates[offset].set)
    opening.start()
    with pytest.raises(StoreError, match="bad sector"):
        rig.fetch([rig.keys[3]])
    opening.join()
    rig.close()


def test_a_slot_that_went_to_another_is_not_taken_for_the_one_that_was_lost(
    rigs: type[Rig],
) -> None:
    rig = rigs()
    lost, other = np.array(rig.keys[3:4]), np.array(rig.keys[4:5])
    with rig.fetch(other.tolist()) as step:
        slots = rig.buffer._cache.lookup(other)
        rig.buffer._wait_for(other, slots)
        with pytest.raises(StoreError, match="could not be; ask again"):
            rig.buffer._wait_for(lost, slots)
        rig.check(other.tolist(), step)
    rig.close()


def test_keys_number_segments_heads_and_clusters() -> None:
    table = Rig(segments=3).buffer.table
    places = np.array([(s, h, c) for s in range(3) for h in range(HEADS) for c in range(CLUSTERS)])
    keys = table.keys_of(*places.T)
    assert keys.tolist() == list(range(table.keys))
    assert table.heads(keys).tolist() == places[:, 1].tolist()


def test_close_waits_for_reads_and_raises_what_failed(rigs: type[Rig]) -> None:
    rig = rigs(threads=1)
    source, offset = rig.place(rig.keys[3])
    source.failing, source.gates[offset] = {offset}, threading.Event()
    rig.prefetch([rig.keys[3]])
    until(lambda: source.reading)
    threading.Timer(0.05, source.gates[offset].set).start()
    with pytest.raises(StoreError, match="bad sector"):
        rig.buffer.close()
    assert source.reading == 0
    rig.buffer.close()
    with pytest.raises(ValueError, match="closed"):
        rig.fetch(rig.keys[:1])
    rig.prefetcher.close()


def test_segments_that_are_forgotten_come_back_as_others(rigs: type[Rig]) -> None:
    rig = rigs(capacity=100_000, threads=2)
    with rig.fetch(rig.keys) as step:
        rig.check(rig.keys, step)
    rig.prefetch(rig.keys)
    rig.buffer.keep(2)
    assert rig.buffer.table.keys == 2 * HEADS * CLUSTERS
    rig.sources[2:] = [FakeSource(rig.sources[0].bytes, seed) for seed in (7, 8, 9)]
    for source in rig.sources[2:]:
        rig.buffer.append(source, rig.offsets, rig.lengths)
    with rig.fetch(rig.keys) as step:
        rig.check(rig.keys, step)
    rig.close()


def test_clusters_outside_their_source_are_refused() -> None:
    buffer = WaveBuffer(1, TOKEN, Prefetcher(0))
    for offset, length in ((-1, 1), (0, -1), (90, 11)):
        with pytest.raises(ValueError, match="outside the 100 bytes"):
            buffer.append(FakeSource(100), np.array([[offset]]), np.array([[length]]))
    buffer.append(FakeSource(100), np.array([[90]]), np.array([[10]]))


schedules = st.lists(
    st.one_of(
        st.tuples(st.just("prefetch"), st.sets(st.integers(0, 71), max_size=40)),
        st.tuples(st.just("fetch"), st.sets(st.integers(0, 71), max_size=30)),
        st.tuples(st.just("release"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.sets(st.integers(0, 71), max_size=2)),
        st.tuples(st.just("keep"), st.integers(1, 4)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(
    schedule=schedules,
    policy=st.sampled_from(POLICIES),
    threads=st.integers(0, 6),
    capacity=st.sampled_from([0, 500, 4000, 12_000]),
    queue=st.integers(1, 20),
)
def test_any_schedule_reads_the_truth(
    schedule: list[tuple[str, object]], policy: str, threads: int, capacity: int, queue: int
) -> None:
    """Slow and failing slow tiers, many threads, several steps at once: no byte ever changes."""
    rig = Rig(threads=threads, capacity=capacity, queue=queue, seconds=2e-4, policy=policy)
    steps: list[tuple[list[int], Fetched]] = []
    failing = False

    def end(number: int) -> None:
        keys, step = steps.pop(number)
        rig.check(keys, step)
        step.release()
        step.release()

    for name, what in schedule:
        if name in ("prefetch", "fetch", "fail"):
            assert isinstance(what, set)
            chosen = [rig.keys[i] for i in what if i < len(rig.keys)]
        if name == "prefetch":
            rig.prefetch(chosen)
        elif name == "fetch":
            try:
                step = rig.fetch(chosen)
            except StoreError:
                assert failing
                continue
            rig.check(chosen, step)
            steps.append((chosen, step))
        elif name == "fail":
            for source in rig.sources:
                source.failing = set()
            for key in chosen:
                source, offset = rig.place(key)
                source.failing.add(offset)
            failing = failing or bool(chosen)
        elif name == "release" and steps:
            assert isinstance(what, int)
            end(what % len(steps))
        elif name == "keep":
            while steps:
                end(0)
            assert isinstance(what, int)
            rig.buffer.keep(what)
            del rig.sources[what:]
            rig.sources += [FakeSource(rig.sources[0].bytes, 9, 2e-4)] * (4 - len(rig.sources))
            for source in rig.sources[what:]:
                rig.buffer.append(source, rig.offsets, rig.lengths)
    while steps:
        end(0)
    try:
        rig.buffer.close()
    except StoreError:
        assert failing
    assert all(source.reading == 0 for source in rig.sources)
    rig.prefetcher.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_many_callers_at_once(rigs: type[Rig], policy: str) -> None:
    rig = rigs(threads=4, capacity=6000, seconds=1e-4, policy=policy)
    failures: list[BaseException] = []

    def call(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                keys = rng.choice(rig.keys, 12, replace=False).tolist()
                rig.prefetch(rng.choice(rig.keys, 20, replace=False).tolist())
                with rig.fetch(keys) as step:
                    rig.check(keys, step)
        except BaseException as failure:
            failures.append(failure)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(300)
    assert failures == []
    found = rig.buffer.statistics()
    assert found.hits.sum() + found.late.sum() + found.misses.sum() == 5 * 40 * 12
    assert found.evicted > 0
    rig.close()
