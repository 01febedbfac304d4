"""How fast bytes come now, and how long the rest will take."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 10.0
"""What was longer ago says nothing about a line that has changed since."""
LEAST_SECONDS = 0.5
"""Over less than this a rate would jump."""


class Pace:
    """Feed it `advance`; times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()

    def advance(self, done: int, now: float) -> None:
        self._steps.append((now, done))
        while len(self._steps) > 2 and now - self._steps[1][0] >= WINDOW_SECONDS:
            self._steps.popleft()

    def rate(self) -> float | None:
        """Bytes per second of late; None before it can be known."""
        if not self._steps:
            return None
        (began, first), (ended, last) = self._steps[0], self._steps[-1]
        if ended - began < LEAST_SECONDS:
            return None
        return max(0.0, (last - first) / (ended - began))

    def seconds_left(self, total: int) -> float | None:
        """Until `total` bytes are there; None before it can be known, and while nothing comes."""
        rate = self.rate()
        return (total - self._steps[-1][1]) / rate if rate else None
