"""How long work will still take, from what it took so far.

Prefill costs more per token the further it is: each token attends to all before it. A straight
rate is therefore always too hopeful. Seconds per step are fitted as a + b x position over the
steps measured here, and summed over the rest; there is no figure before three steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..amounts import about as about
from ..amounts import spoken as spoken

STEPS_NEEDED = 3


class TimeLeft:
    """Feed it `advance` as work goes on; ask `seconds`."""

    def __init__(self) -> None:
        self._total = 0
        self._at: tuple[float, int] | None = None
        self._steps: list[tuple[float, int, float]] = []
        """(middle of the step, its size, its seconds)"""

    def advance(self, done: int, total: int, now: float) -> None:
        """`done` of `total` units at time `now` in seconds; going back begins anew."""
        if self._at is None or done < self._at[1] or total != self._total:
            self._steps = []
        elif done > self._at[1]:
            size = done - self._at[1]
            self._steps.append((self._at[1] + size / 2, size, now - self._at[0]))
        else:
            return
        self._at, self._total = (now, done), total

    def seconds(self, now: float) -> float | None:
        """Seconds left at time `now`; None before enough is measured."""
        if self._at is None or len(self._steps) < STEPS_NEEDED:
            return None
        began, done = self._at
        intercept, slope = _fit(self._steps)
        left = self._total - done
        expected = intercept * left + slope * left * (done + self._total) / 2
        return max(0.0, expected - (now - began))

    def fit(self) -> Pace | None:
        """What was measured, to be told at another time; None before enough is measured."""
        if len(self._steps) < STEPS_NEEDED:
            return None
        return Pace(*_fit(self._steps))


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds per unit are intercept + slope x position."""

    intercept: float
    slope: float

    def seconds(self, total: int, done: int = 0) -> float:
        """For everything up to `total` that is behind what is `done`."""
        left = self.intercept * (total - done) + self.slope * (total**2 - done**2) / 2
        return max(0.0, left)


def _fit(steps: list[tuple[float, int, float]]) -> tuple[float, float]:
    """Seconds per unit as intercept + slope x position, least squares weighted by size.

    A negative slope would promise that work gets faster; the mean rate is taken then.
    """
    weight = sum(size for _, size, _ in steps)
    rate = sum(seconds for _, _, seconds in steps) / weight
    middle = sum(at * size for at, size, _ in steps) / weight
    spread = sum(size * (at - middle) ** 2 for at, size, _ in steps)
    if spread == 0:
        return rate, 0.0
    slope = sum((at - middle) * (seconds - rate * size) for at, size, seconds in steps) / spread
    slope = max(0.0, slope)
    return rate - slope * middle, slope
