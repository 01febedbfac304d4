"""`retrolocal bench reopen`: how long until a document that was read before is answered about.

Whole programs are timed up to the first byte of their answers, each a process of its own: a chat
without a document, one about a document that the library has, with its files in the page cache, and
one after they were dropped from it. The library is made for the run and removed again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from statistics import median

from ..errors import DataError, StoreError
from ..measurement import Progress, Result
from .options import ReopenOptions
from .plain_read import drop, read_seconds
from .programs import Run, program, timed


def run(options: ReopenOptions, progress: Progress) -> Result:
    """Raises DataError for a document that cannot be read, StoreError for a disk."""
    folder = Path(tempfile.gettempdir() if options.folder is None else options.folder)
    try:
        made = Path(tempfile.mkdtemp(prefix="retrolocal-bench-", dir=folder))
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}; give --folder another") from None
    try:
        return _measured(_Programs(options, made), options, progress)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _measured(programs: _Programs, options: ReopenOptions, progress: Progress) -> Result:
    progress(f"reading {options.file}")
    read = programs.timed("ingest", str(options.file), "--json")
    kept = [path for path in programs.library.rglob("*") if path.is_file()]
    about = ("chat", "-f", str(options.file), *programs.question)
    alone = ("chat", "--no-store", *programs.question)
    programs.timed(*alone)
    facts = programs.timed(*about, "--json").facts
    if facts["cache"]["kind"] != "wave":
        raise DataError(
            f"{options.file}: has {facts['cache']['tokens']:,} tokens, so few that a chat here "
            "does without an index; give a longer text"
        )
    seconds: dict[str, list[float]] = {"empty": [], "warm": [], "cold": []}
    for number in range(options.repeats):
        progress(f"opening: {number + 1}/{options.repeats}")
        seconds["empty"].append(programs.timed(*alone).answered)
        warm = programs.timed(*about)
        seconds["warm"].append(warm.answered)
        drop(kept)
        seconds["cold"].append(programs.timed(*about).answered)
    largest = max(kept, key=lambda path: path.stat().st_size)
    drop([largest])
    bandwidth = largest.stat().st_size / read_seconds([largest])
    found = {name: median(times) for name, times in seconds.items()}
    index = facts["cache"]["index_bytes"]
    return {
        "tokens": facts["cache"]["tokens"],
        "read_seconds": read.seconds,
        "kept_bytes": sum(path.stat().st_size for path in kept),
        "index_bytes": index,
        **{f"{name}_seconds": value for name, value in found.items()},
        "warm_over_empty_seconds": found["warm"] - found["empty"],
        "cold_over_warm_seconds": found["cold"] - found["warm"],
        "disk_bytes_per_second": bandwidth,
        "twice_the_index_seconds": 2 * index / bandwidth,
        "text": facts["text"],
    }


class _Programs:
    """Runs of the program with a library of their own."""

    def __init__(self, options: ReopenOptions, folder: Path) -> None:
        self.library = folder / "library"
        self.question = ("-p", options.question, "-n", "1", "--temp", "0", "-q")
        self._model = ("-m", options.model)
        self._environment = {**os.environ, "RETROLOCAL_LIBRARY": str(self.library)}

    def timed(self, command: str, *words: str) -> Run:
        """Raises DataError that says what the program said."""
        return timed(program(command, *words, *self._model), self._environment)
