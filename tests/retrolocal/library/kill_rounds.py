"""Kills a process that writes, at random moments, and lets the next one continue.

    python kill_rounds.py FOLDER ROUNDS SEED

In each round children read a text into a library until one is done; each is killed after a random
time. Leaves with 1 as soon as a round ends with other bytes than an uninterrupted run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from sample import Book, content, find

from retrolocal.library import Library

BOOK = Book(segments=6, bytes_per_token=3000)


def ingest(root: Path) -> None:
    BOOK.ingest(Library(root, now=lambda: 1_700_000_000.0))


def timed_ingest(root: Path) -> float:
    started = time.monotonic()
    ingest(root)
    return time.monotonic() - started


def killed_after(seconds: float, root: Path) -> bool:
    """Runs an ingest in a child; whether it had to be killed."""
    child = os.fork()
    if child == 0:
        try:
            ingest(root)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(1)
    return os.WIFSIGNALED(status)


def main(folder: Path, rounds: int, seed: int) -> None:
    chosen = random.Random(seed)
    usual = min(timed_ingest(folder / name) for name in ("first", "second", "whole"))
    expected = content(folder / "whole")
    kills = 0
    for number in range(rounds):
        root = folder / "killed"
        shutil.rmtree(root, ignore_errors=True)
        while killed_after(chosen.uniform(0, usual), root):
            kills += 1
        with find(Library(root), BOOK) as entry:
            BOOK.assert_is(entry)
        Library(root).collect()
        if content(root) != expected:
            sys.exit(f"round {number}: not the bytes of an uninterrupted run")
    sys.stdout.write(f"{rounds} of {rounds} rounds, {kills} kills\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
