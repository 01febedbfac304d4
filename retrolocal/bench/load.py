"""`retrolocal bench load`: from the start of the program to its first token, against a plain read.

In turn, so that a noisy machine is unfair to nobody: a read of the model's weight files through a
small buffer, one into memory, a process that imports what a chat imports, and whole chats of one
token. One more chat is watched from outside for its memory.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

from ..hub import resolve_model
from ..measurement import Progress, Result
from ..models.checkpoint import read_checkpoint
from .options import LoadOptions
from .plain_read import copy_seconds, drop, read_seconds
from .programs import program, timed

IMPORTS = "import retrolocal.config; retrolocal.config.limit_spinning(); import retrolocal.session"
Found = TypeVar("Found")
LOOK_SECONDS = 0.005
"""Between two looks at a process's memory."""


def run(options: LoadOptions, progress: Progress) -> Result:
    """Raises ModelError for a model that is not there, DataError for one that does not start."""
    session = options.session
    folder = resolve_model(options.model, revision=session.revision, offline=session.offline)
    tensors = read_checkpoint(folder).values()
    files = sorted({tensor.file for tensor in tensors})
    environment = dict(os.environ)
    chat, imports = _chat(options), [sys.executable, "-P", "-c", f"{IMPORTS}; print('{{}}')"]
    progress("the first run, which does not count")
    timed(chat, environment)
    taken: dict[str, list[float]] = {
        name: [] for name in ("read", "copy", "start", "program", "weights", "first_step")
    }
    for number in range(options.repeats):
        progress(f"{number + 1}/{options.repeats}")
        for name, reading in (("read", read_seconds), ("copy", copy_seconds)):
            taken[name].append(_after(options, files, reading))
        taken["program"].append(timed(imports, environment).answered)
        found = _after(options, files, lambda _: timed(chat, environment))
        taken["start"].append(found.answered)
        taken["weights"].append(found.facts["load_seconds"])
        taken["first_step"].append(found.facts["prefill_seconds"])
    progress("watching its memory")
    seconds = {name: median(times) for name, times in taken.items()}
    parts = {name: seconds.pop(name) for name in ("program", "weights", "first_step")}
    parts["rest"] = max(0.0, seconds["start"] - sum(parts.values()))
    return {
        "model": options.model,
        "files": len(files),
        "file_bytes": sum(file.stat().st_size for file in files),
        "weight_bytes": sum(tensor.bytes for tensor in tensors),
        "page_cache": "cold" if options.cold else "warm",
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "start_parts_seconds": parts,
        "start_over_read": seconds["start"] / seconds["read"],
        "start_over_copy": seconds["start"] / seconds["copy"],
        "peak_anonymous_bytes": _anonymous(chat, environment),
        "samples": taken,
    }


def _chat(options: LoadOptions) -> list[str]:
    """A chat of one token, with the settings of the measurement."""
    session = options.session
    words = ["-m", options.model, "-p", "Hello", "-n", "1", "--temp", "0", "--json", "-q"]
    words += ["--no-store", "--device", session.device, "--dtype", session.dtype]
    words += ["--quant", session.quant, "--threads", str(session.threads)]
    words += [] if session.revision is None else ["--revision", session.revision]
    words += ["--offline"] if session.offline else []
    return program("chat", *words)


def _after(
    options: LoadOptions, files: Sequence[Path], work: Callable[[Sequence[Path]], Found]
) -> Found:
    """What `work` finds; with `--cold` the files are dropped from the page cache before."""
    if options.cold:
        drop(files)
    return work(files)


def _anonymous(words: Sequence[str], environment: dict[str, str]) -> int | None:
    """The most memory of a run that is no file's; None where the system does not tell."""
    most = 0
    ended = threading.Event()

    def look(process: int) -> None:
        nonlocal most
        status = Path(f"/proc/{process}/status")
        while not ended.is_set():
            try:
                found = re.search(r"^RssAnon:\s*(\d+) kB", status.read_text(), re.MULTILINE)
            except OSError:
                return
            if found is not None:
                most = max(most, int(found[1]) << 10)
            time.sleep(LOOK_SECONDS)

    def watch(process: int) -> None:
        threading.Thread(target=look, args=(process,), daemon=True).start()

    try:
        timed(words, environment, watch)
    finally:
        ended.set()
    return most or None
