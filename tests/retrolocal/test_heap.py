"""What was allocated for a moment is given back to the system."""

from __future__ import annotations

import sys

import pytest
import torch

from retrolocal import heap
from retrolocal.memory import resident_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="other heaps keep their own counsel")
def test_holes_between_what_stays_are_given_back() -> None:
    # 40 KB each: small enough for the heap, larger than a few pages.
    rows = [torch.ones(10_000) for _ in range(3000)]
    kept = rows[::2]
    del rows
    before = resident_bytes()
    heap.give_back()
    assert before - resident_bytes() > 30_000_000
    assert all(float(row.sum()) == 10_000 for row in kept)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    heap._trim.cache_clear()
    try:
        heap.give_back()
    finally:
        heap._trim.cache_clear()
