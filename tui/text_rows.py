"""A long text cut into rows of a width, all at once and fast enough for a million tokens.

Rows end at spaces where they can. Widths are those of the terminal's cells, so wide characters
take two. The text is not copied: a row is a pair of offsets. No row loses a character but the
one space or line feed it ends at.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from rich.cells import get_character_cell_size

Offsets = npt.NDArray[np.int64]
CHUNK = 1 << 16
"""Characters looked at together: few enough to stay in the processor's cache."""


class TextRows:
    """The rows of one text; `at_width` gives them for a width."""

    def __init__(self, text: str) -> None:
        breaks, spaces, widths = [_NONE], [_NONE], []
        for first in range(0, len(text), CHUNK):
            part = text[first : first + CHUNK].encode("utf-32-le", "surrogatepass")
            codes = np.frombuffer(part, dtype=np.uint32)
            breaks.append(np.flatnonzero(codes == 0x0A) + first)
            spaces.append(np.flatnonzero(codes == 0x20) + first)
            widths.append(_cell_widths(codes))
        # ends[i]: cells from the beginning of the text to behind character i - 1. Where every
        # character takes one cell that is i (what a line feed takes is never asked).
        self._ends: npt.NDArray[np.int32] | None = None
        if any(found is not None for found in widths):
            self._ends = np.ones(len(text) + 1, dtype=np.int32)
            self._ends[0] = 0
            for number, found in enumerate(widths):
                if found is not None:
                    self._ends[1 + number * CHUNK :][: len(found)] = found
            np.cumsum(self._ends, out=self._ends)
        ends = np.concatenate(breaks)
        self._line_starts = np.concatenate(([0], ends + 1))
        self._line_ends = np.concatenate((ends, [len(text)]))
        self._spaces = np.concatenate(spaces)

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
        before = np.searchsorted(self._spaces, fits[cut], side="right") - 1
        space = np.where(before >= 0, self._spaces[before], -1) if len(self._spaces) else before
        wraps = space > starts[cut]
        at = cut[wraps]
        stops[at] = space[wraps]
        following[at] = space[wraps] + 1
        return stops, following


def _cell_widths(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32] | None:
    """Cells of each character, looked up once per kind; None where each takes one."""
    odd = np.flatnonzero(codes >= 0x300)
    if not len(odd):
        return None
    kinds, inverse = np.unique(codes[odd], return_inverse=True)
    cells = np.array([get_character_cell_size(chr(code)) for code in kinds], dtype=np.int32)
    if (cells == 1).all():
        return None
    widths = np.ones(len(codes), dtype=np.int32)
    widths[odd] = cells[inverse]
    return widths


_NONE = np.zeros(0, dtype=np.int64)
