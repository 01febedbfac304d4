"""A long text cut into rows of a width, all at once and fast enough for a million tokens.

Rows end at spaces where they can. Widths are those of the terminal's cells, so wide characters
take two. The text is not copied: a row is a pair of offsets. No row loses a character but the
one space or line feed it ends at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rich.cells import get_character_cell_size

Offsets = npt.NDArray[np.int64]


class TextRows:
    """The rows of one text; `at_width` gives them for a width."""

    def __init__(self, text: str) -> None:
        plain = text.isascii()
        codes = np.frombuffer(
            text.encode("ascii" if plain else "utf-32-le", "surrogatepass"),
            dtype=np.uint8 if plain else np.uint32,
        )
        self._length = len(codes)
        # ends[i]: cells from the beginning of the text to behind character i - 1; in plain
        # ASCII that is i (what a line feed takes is never asked).
        self._ends: npt.NDArray[np.int32] | None = None
        if not plain:
            self._ends = np.zeros(self._length + 1, dtype=np.int32)
            np.cumsum(_cell_widths(codes), out=self._ends[1:])
        breaks = np.flatnonzero(codes == 0x0A)
        self._line_starts = np.concatenate(([0], breaks + 1)).astype(np.int64)
        self._line_ends = np.concatenate((breaks, [self._length])).astype(np.int64)
        # last_space[i]: the last space at or before character i.
        self._last_space = np.full(self._length, -1, dtype=np.int32)
        spaces = np.flatnonzero(codes == 0x20)
        self._last_space[spaces] = spaces
        if self._length:
            np.maximum.accumulate(self._last_space, out=self._last_space)

    def at_width(self, width: int) -> tuple[Offsets, Offsets]:
        """First characters and ends of all rows of at most `width` cells, int64 [rows] each."""
        width = max(2, width)
        starts, ends = self._line_starts, self._line_ends
        found_starts, found_ends = [], []
        while len(starts):
            stops, following = self._row_ends(starts, ends, width)
            found_starts.append(starts)
            found_ends.append(stops)
            more = following < ends
            starts, ends = following[more], ends[more]
        first = np.concatenate(found_starts)
        order = np.argsort(first, kind="stable")
        return first[order], np.concatenate(found_ends)[order]

    def _row_ends(self, starts: Offsets, ends: Offsets, width: int) -> tuple[Offsets, Offsets]:
        """Where each row ends, and where the next one of the same line begins."""
        # The last place up to which the cells fit; at least one character always does.
        if self._ends is None:
            fits = starts + width
        else:
            fits = np.searchsorted(self._ends, self._ends[starts] + width, side="right") - 1
        fits = np.minimum(np.maximum(fits, np.minimum(starts + 1, ends)), ends)
        stops, following = fits.copy(), fits.copy()
        cut = np.flatnonzero(fits < ends)
        # A row may end at the space that no longer fits; that one is swallowed.
        space = self._last_space[fits[cut]]
        wraps = space > starts[cut]
        at = cut[wraps]
        stops[at] = space[wraps]
        following[at] = space[wraps] + 1
        return stops, following


def _cell_widths(codes: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """Cells of each character: 1 for most, looked up once per kind of the others."""
    widths = np.ones(len(codes), dtype=np.int8)
    odd = np.flatnonzero((codes >= 0x300) | (codes == 0x0A))
    if len(odd):
        kinds, inverse = np.unique(codes[odd], return_inverse=True)
        cells = [0 if code == 0x0A else get_character_cell_size(chr(code)) for code in kinds]
        widths[odd] = np.array(cells, dtype=np.int8)[inverse]
    return widths
