"""An answer while it is made, so that it can be made again without telling anything twice.

Keys and values of a large kept text are checked when they are first touched, perhaps in the middle
of an answer. What is damaged is then read again and the answer begun again: ids that were drawn are
drawn no more, text that was told is not told again. One answer, one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from .config import SamplingConfig
from .errors import DamagedError
from .generate import Piece
from .reply import Event
from .sampling import Sampler, make_sampler


class Draft:
    def __init__(self, distrusted: Callable[[], bool], drop: Callable[[], None]) -> None:
        """`distrusted()` says whether damage was found that will be read again; `drop()` gives back
        the caches that hold it."""
        self._distrusted, self._drop = distrusted, drop
        self.drawn: list[int] = []
        """Ids of the reply, in the order in which it takes them."""
        self._known: list[int] = []
        """Those of the attempt before."""
        self._sampler: Sampler | None = None
        self._pieces = self._told = 0
        """Pieces of text that this attempt came to, and that were told so far."""

    def events(self, attempt: Callable[[], Iterator[Event]]) -> Iterator[Event]:
        """Those of `attempt()`, and of a second one where the first comes upon damage.

        Raises DamagedError for what would not be read again, or is damaged once more.
        """
        try:
            yield from self._untold(attempt())
            return
        except DamagedError:
            if not self._distrusted():
                raise
        with suppress(DamagedError):
            # What else was found meanwhile is read again with it.
            self._drop()
        self._known, self.drawn, self._pieces = self.drawn, [], 0
        yield from self._untold(attempt())

    def sampler(self, config: SamplingConfig, prompt_ids: Sequence[int]) -> Sampler:
        """That of the first attempt, which remembers what it drew."""
        if self._sampler is None:
            self._sampler = make_sampler(config, prompt_ids)
        return self._sampler

    def draw(self, draw: Callable[[], int]) -> int:
        """The next id: the one of the attempt before, else a new one."""
        place = len(self.drawn)
        self.drawn.append(self._known[place] if place < len(self._known) else draw())
        return self.drawn[-1]

    def _untold(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Piece):
                self._pieces += 1
                if self._pieces <= self._told:
                    continue
                self._told = self._pieces
            yield event
