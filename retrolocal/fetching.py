"""A download with its progress told: for every command that may need a model. Loads no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .amounts import size, spoken
from .config import SessionConfig
from .default_model import fitting
from .errors import ConfigError, Interrupted, MemoryLimitError
from .hub import Download, cache_folder, fetch, locate_model, retries_told, shadow_note
from .memory import GIB, limit, machine_bytes, resident_bytes
from .models.config import read_config
from .pace import Pace
from .paths import disk_free
from .recommended import Recommendation
from .report import Report

if TYPE_CHECKING:
    from .ingest.document import Document

LINE_SECONDS = 0.2
"""Between two progress lines on a terminal, where one is written over the other."""
OBJECT_SECONDS = 1.0
"""Between two progress objects."""
LOG_SECONDS = 10.0
"""Between two progress lines in a file."""


def bring(
    name: str, config: SessionConfig, report: Report, documents: Sequence[Document] = ()
) -> None:
    """Sees to it that the model `name` is on this machine.

    A model that does not fit with these documents is refused before its weights are fetched.
    Raises ModelError, ContextError, MemoryLimitError or Interrupted.
    """
    with retries_told(report.remark):
        found = locate_model(name, revision=config.revision, offline=config.offline)
    note = shadow_note(name)
    if note is not None:
        report.remark(note)
    if isinstance(found, Download):
        fetch_told(found, report, usable_with(name, config, documents))


def fetch_told(
    download: Download, report: Report, check: Callable[[Path], None] | None = None
) -> Path:
    """Fetches what is missing of a model and tells how it goes; the folder of the model.

    `check` is given its settings before its weights are fetched (None: `check_usable`). Raises
    what that raises, ModelError, and Interrupted at Ctrl-C.
    """
    name = str(download.name)
    began, fetched = time.monotonic(), download.missing_bytes
    _announce(download, report)
    progress = _Progress(name, report)
    try:
        with retries_told(report.remark):
            folder = fetch(download, received=progress.received, check=check or check_usable)
    except KeyboardInterrupt:
        report.say({"event": "stopped", "model": name, "done": progress.done}, "")
        raise Interrupted("stopped; what is complete is kept: start it again to go on") from None
    finally:
        report.end_passing()
    seconds = time.monotonic() - began
    facts = {
        "event": "done",
        "model": name,
        "folder": str(folder),
        "downloaded_bytes": fetched,
        "seconds": round(seconds, 3),
    }
    rate = f"{size(fetched)} in {seconds:.1f} s, {size(fetched / max(seconds, 1e-9))}/s"
    report.say(facts, f"{name} is here: {rate if fetched else 'nothing is new'}")
    return folder


def check_usable(folder: Path, config: SessionConfig | None = None) -> None:
    """Refuses a model by its config.json; raises ConfigError.

    It names one that could be used: here, and with the limits of `config` where one is given.
    """
    try:
        read_config(folder)
    except ConfigError as error:
        reason = str(error).removeprefix(f"{folder}/")
        raise ConfigError(f"this model cannot be used: {reason}{_instead(config)}") from error


def usable_with(
    name: str, config: SessionConfig, documents: Sequence[Document] = ()
) -> Callable[[Path], None]:
    """`check_usable`, and whether the model fits here with these settings and documents."""

    def check(folder: Path) -> None:
        # Not for `pull`, which does not compute.
        from .fit_check import require_fit

        check_usable(folder, config)
        try:
            require_fit(name, folder, config, documents)
        except MemoryLimitError as error:
            raise MemoryLimitError(f"not downloaded: {error}{_instead(config)}") from error

    return check


def _instead(config: SessionConfig | None = None) -> str:
    found = fitting() if config is None else _fitting_within(config)
    better = next((one.model for one in found if not one.gated), None)
    return "" if better is None else f"; {better} could be"


def _fitting_within(config: SessionConfig) -> list[Recommendation]:
    """Recommended models that fit into what `--ram`, `--vram` and other programs leave."""
    # Whoever has a limit is about to compute, and needs PyTorch anyway.
    from .device import gpu_bytes

    gpu = gpu_bytes(config)
    if gpu is not None and config.vram is not None:
        gpu = min(gpu, int(config.vram * GIB))
    return fitting(memory_bytes=limit(config.ram, resident_bytes()).bytes, gpu_bytes=gpu)


def _announce(download: Download, report: Report) -> None:
    folder, missing = cache_folder(), download.missing
    free = disk_free(folder)
    facts = {
        "event": "start",
        "model": str(download.name),
        "commit": download.commit,
        "files": len(missing),
        "total_bytes": download.total_bytes,
        "download_bytes": download.missing_bytes,
        "free_bytes": free,
        "folder": str(download.folder),
    }
    files = f"{len(missing)} file{'s' * (len(missing) != 1)}, {size(download.missing_bytes)}"
    line = f"{download.name}: fetching {files} into {folder} ({size(free)} free)"
    report.say(facts, line if missing else "")
    if download.total_bytes > machine_bytes():
        report.remark(
            f"its weights take {size(download.total_bytes)} and this machine has "
            f"{size(machine_bytes())} of memory: it cannot be used here{_instead()}"
        )


class _Progress:
    """Tells how far a download is, a few times a second."""

    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._pace = Pace()
        self._every = LINE_SECONDS if sys.stderr.isatty() else LOG_SECONDS
        if report.as_json:
            self._every = OBJECT_SECONDS
        self._told = time.monotonic()
        self.done = 0

    def received(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._pace.advance(done, now)
        over = done == total and self.done < total
        self.done = done
        if now - self._told < self._every and not over:
            return
        self._told = now
        rate, left = self._pace.rate(), self._pace.seconds_left(total)
        facts = {
            "event": "progress",
            "model": self._name,
            "done": done,
            "total": total,
            "bytes_per_second": None if rate is None else round(rate),
            "seconds_left": None if left is None else round(left, 1),
        }
        parts = [f"{size(done)} of {size(total)} ({done / max(total, 1):.0%})"]
        parts += [] if rate is None else [f"{size(rate)}/s"]
        parts += [] if left is None or done == total else [spoken(left)]
        self._report.say(facts, ", ".join(parts), passing=True)
