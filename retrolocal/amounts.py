"""Amounts as people read them: bytes and seconds."""

from __future__ import annotations

MOST_DIGITS = 5


def size(count: float) -> str:
    """Bytes as `1.4 GB`, `310 MB`, `12 kB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return (
                f"{count / scale:,.1f} {unit}"
                if count < 100 * scale
                else f"{count / scale:,.0f} {unit}"
            )
    return f"{count:.0f} B"


def size_text(count: float, digits: int = 1) -> str:
    """Bytes of memory or of files that are made here: `29.1 GiB`, `512.0 MiB`, `1 byte`."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.{digits}f} {name}"
    return f"{count:.0f} byte{'s' * (count != 1)}"


def told_apart(*counts: float, digits: int = 1) -> tuple[str, ...]:
    """`size_text` of amounts that are compared, with as many digits as it takes to see which of
    them differ."""
    for more in range(digits, MOST_DIGITS):
        texts = tuple(size_text(count, more) for count in counts)
        if len(set(texts)) == len(set(counts)):
            return texts
    return tuple(f"{count:,.0f} bytes" for count in counts)


def spoken(seconds: float) -> str:
    """`about 4:10 left`; rounded to ten seconds above two minutes."""
    return f"{about(seconds)} left"


def about(seconds: float) -> str:
    """`about 4:10`."""
    whole = round(seconds)
    if whole > 120:
        whole = round(seconds / 10) * 10
    if whole >= 3600:
        return f"about {whole // 3600}:{whole % 3600 // 60:02} h"
    return f"about {whole // 60}:{whole % 60:02}"
