"""Threads behind a bounded queue: nothing waits, nothing is lost, nothing stays behind."""

from __future__ import annotations

import threading

import pytest

from retrolocal.wave.buffer.prefetch import Prefetcher

from .conftest import until


def alive() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_a_full_queue_refuses() -> None:
    gate, done, lock = threading.Event(), list[int](), threading.Lock()
    prefetcher = Prefetcher(threads=2, queue=3)

    def job(number: int) -> None:
        assert gate.wait(60)
        with lock:
            done.append(number)

    begun = threading.Semaphore(0)
    for _ in range(2):
        assert prefetcher.offer(lambda: (begun.release(), job(0))[1])
    assert all(begun.acquire(timeout=60) for _ in range(2))
    assert [prefetcher.offer(lambda n=n: job(n)) for n in range(1, 6)] == [1] * 3 + [0] * 2
    gate.set()
    until(lambda: len(done) == 5)
    assert sorted(done) == [0, 0, 1, 2, 3]
    prefetcher.close()
    assert alive() == 0
    assert not prefetcher.offer(lambda: None)


def test_close_waits_for_what_has_begun_and_drops_the_rest() -> None:
    gate, begun, done = threading.Event(), threading.Event(), list[str]()
    prefetcher = Prefetcher(threads=1)

    def first() -> None:
        begun.set()
        assert gate.wait(60)
        done.append("first")

    assert prefetcher.offer(first)
    assert prefetcher.offer(lambda: done.append("second"))
    assert begun.wait(60)
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    until(lambda: not prefetcher.offer(lambda: None))
    assert closing.is_alive()
    gate.set()
    closing.join(60)
    assert done == ["first"]
    assert alive() == 0
    prefetcher.close()


def test_a_job_that_raises_ends_alone_and_is_reported() -> None:
    prefetcher, done = Prefetcher(threads=1), threading.Event()

    def bad() -> None:
        raise ZeroDivisionError("no such luck")

    assert prefetcher.offer(bad)
    assert prefetcher.offer(done.set)
    assert done.wait(60)
    with pytest.raises(ZeroDivisionError, match="no such luck"):
        prefetcher.close()
    prefetcher.close()


def test_without_threads_everything_is_refused() -> None:
    prefetcher = Prefetcher(threads=0)
    assert not prefetcher.offer(lambda: None)
    prefetcher.close()
