"""Whole runs of the program, timed from outside: each a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError


@dataclass(frozen=True, slots=True)
class Run:
    """One run that ended well."""

    answered: float
    """Seconds until its first byte was there."""
    seconds: float
    """Until it had ended."""
    printed: str

    @property
    def facts(self) -> dict[str, Any]:
        """The last object that it printed."""
        found: dict[str, Any] = json.loads(self.printed.splitlines()[-1])
        return found


def program(*words: str) -> list[str]:
    """The words of a process that runs `retrolocal WORDS...`."""
    # Not beside a source tree, whose folder of the same name hides the package.
    return [sys.executable, "-P", "-m", "retrolocal", *words]


def timed(
    words: Sequence[str],
    environment: Mapping[str, str],
    watch: Callable[[int], None] = lambda process: None,
) -> Run:
    """Runs `words`; `watch` is given the process's id and returns when it likes.

    Raises DataError that says what the program said.
    """
    began = time.perf_counter()
    with subprocess.Popen(
        list(words),
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        # Nothing is taken from the pipe but the first byte.
        bufsize=0,
    ) as process:
        watch(process.pid)
        assert process.stdout is not None
        first = process.stdout.read(1)
        answered = time.perf_counter() - began
        rest, complaint = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        said = (complaint.decode("utf-8", "replace").strip() or "nothing").splitlines()[-1]
        raise DataError(f"{_shown(words)} ended with {process.returncode}: {said}")
    return Run(answered, seconds, (first + rest).decode("utf-8", "replace"))


def _shown(words: Sequence[str]) -> str:
    """`retrolocal chat`, of all the words."""
    named = words.index("retrolocal") if "retrolocal" in words else 0
    return " ".join(words[named : named + 2])
