from __future__ import annotations

import pytest

from retrolocal.pace import Pace


def test_no_figure_before_there_is_one() -> None:
    pace = Pace()
    assert pace.rate() is None
    assert pace.seconds_left(100) is None
    pace.advance(0, 1.0)
    pace.advance(10, 1.1)
    assert pace.rate() is None


def test_a_steady_line() -> None:
    pace = Pace()
    for second in range(5):
        pace.advance(second * 10, float(second))
    assert pace.rate() == pytest.approx(10)
    assert pace.seconds_left(100) == pytest.approx(6)


def test_what_was_long_ago_does_not_count() -> None:
    pace = Pace()
    for second in range(100):
        pace.advance(second * 1000, float(second))
    for second in range(100, 120):
        pace.advance(99_000 + (second - 99), float(second))
    assert pace.rate() == pytest.approx(1)


def test_a_line_that_stands_still_or_goes_back_promises_nothing() -> None:
    pace = Pace()
    pace.advance(50, 0.0)
    pace.advance(50, 20.0)
    assert pace.seconds_left(100) is None
    pace.advance(0, 30.0)
    assert pace.rate() == 0
