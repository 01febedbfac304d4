"""Consent to a download: which model, how much, where to, how much is free there."""

from __future__ import annotations

from .activity import size
from .cards import Card, CardKey
from .engine import Download


class DownloadCard(Card):
    """Posts `Card.Chosen` with `y` (download) or `n` (leave)."""

    def __init__(self, download: Download) -> None:
        left = download.free_bytes - download.total_bytes
        lines = [
            f"{download.model} is not on this machine.",
            f"download  {size(download.total_bytes)}",
            f"free      {size(download.free_bytes)}",
            f"into      {download.folder}",
        ]
        keys = [CardKey("y", "download"), CardKey("n", "not now, leave")]
        if left < 0:
            lines.append(f"{size(-left)} more than is free: make room first")
            keys = keys[1:]
        super().__init__("Download the model?", "\n".join(lines), keys)
        self.add_class("-calm")
