"""That the Hub's library waits and tries again is told: it says so to its log alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGER = "huggingface_hub.utils._http"
_ANSWERED = re.compile(r"HTTP Error (\d{3}) ")
_FAILED = re.compile(r"'.*' thrown while requesting ", re.DOTALL)
_WAITS = re.compile(r"(?:Retrying in|Waiting) (\d+(?:\.\d+)?)s ")


@contextmanager
def retries_told(tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs `tell` gets a line before each wait for the Hub."""
    logger, handler = logging.getLogger(LOGGER), _Handler(tell)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


class _Handler(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell
        self._why = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if answered := _ANSWERED.match(text):
            self._why = f"answers {answered[1]}"
        elif _FAILED.match(text):
            self._why = "cannot be reached"
        elif self._why and (waits := _WAITS.search(text)):
            seconds = max(1, round(float(waits[1])))
            self._tell(f"the Hub {self._why}; trying again in {seconds} s")
