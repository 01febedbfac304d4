"""Text that others wrote (models, documents, file names) made safe to show.

A terminal obeys control characters wherever they come from, so none reaches it: each becomes a
visible sign. Lines end in `\\n` afterwards. The result is still text, never markup: widgets take
it as Content.
"""

from __future__ import annotations

import re

_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    # Marks that reorder what follows: they make a line read as what it is not.
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
_BREAKS = re.compile("\r\n|[\r\u2028\u2029]")


def visible(text: str) -> str:
    """The text with every control character but tab and line feed made visible."""
    return _BREAKS.sub("\n", text).translate(_SIGNS)


def one_line(text: str, limit: int) -> str:
    """The text as one line of at most `limit` characters, the rest as an ellipsis."""
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else line[: max(0, limit - 1)] + "…"
