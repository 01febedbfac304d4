"""Amounts as people read them."""

from __future__ import annotations

from retrolocal.amounts import size_text, told_apart
from retrolocal.memory import Limit


def test_the_unit_fits_the_amount() -> None:
    amounts = (0, 1, 10, 1 << 10, 600 << 20, 3 << 29)
    shown = ["0 bytes", "1 byte", "10 bytes", "1.0 KiB", "600.0 MiB", "1.5 GiB"]
    assert [size_text(amount) for amount in amounts] == shown


def test_amounts_that_differ_look_different() -> None:
    gib = 1 << 30
    assert told_apart(600 << 20, 650 << 20) == ("600.0 MiB", "650.0 MiB")
    assert told_apart(4 * gib, 4 * gib + (30 << 20)) == ("4.00 GiB", "4.03 GiB")
    assert told_apart(4 * gib, 4 * gib) == ("4.0 GiB", "4.0 GiB")
    assert told_apart(4 * gib, 4 * gib + 1) == ("4,294,967,296 bytes", "4,294,967,297 bytes")


def test_a_limit_beside_what_is_needed() -> None:
    there = Limit(5 << 30, "{} are free", 4 << 30)
    assert there.words == "4.0 GiB are free"
    assert there.beside((4 << 30) + 20_000_000) == ("4.02 GiB", "4.00 GiB are free")
