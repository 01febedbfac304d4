"""Amounts as people read them: bytes and seconds."""

from __future__ import annotations


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
