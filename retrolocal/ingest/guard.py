"""Runs a parser on an untrusted file in a child process with limits.

The child has a bound on memory, processor time, wall time and output, opens no file by name and
starts without site-packages but those of one library. Whatever becomes of it, the parent gets
values or one `GuardError`.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, BinaryIO

from .guard_child import DEPTH_EXIT, MEMORY_EXIT, OUTPUT_EXIT

_BOOTSTRAP = Path(__file__).with_name("guard_child.py")
_SENSELESS = "reading stopped: the reader's answer makes no sense"
MEMORY_BYTES = 2 << 30
CPU_SECONDS = 120
WALL_SECONDS = 300.0
FORCED = 4
"""How many times the usual limits `--force` allows."""
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE)


class GuardError(Exception):
    """The child gave no result; the message is a sentence without the file's name."""

    def __init__(self, message: str = _SENSELESS) -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may use before it is stopped."""

    memory_bytes: int = MEMORY_BYTES
    """Address space."""
    cpu_seconds: int = CPU_SECONDS
    """Processor time."""
    wall_seconds: float = WALL_SECONDS
    """Time on the clock."""
    output_bytes: int = 1 << 30
    """Size of the result."""
    remedy: str = ""
    """What to do about a limit that was hit, for the end of the message."""

    @classmethod
    def usual(cls, *, cpu_seconds: int = CPU_SECONDS, is_forced: bool) -> Limits:
        """Those of a file that needs `cpu_seconds` at most, and more where the user insists."""
        factor = FORCED if is_forced else 1
        return cls(
            memory_bytes=factor * MEMORY_BYTES,
            cpu_seconds=factor * cpu_seconds,
            wall_seconds=factor * WALL_SECONDS,
            remedy="" if is_forced else f"--force allows {FORCED} times as much",
        )


def run_guarded(
    worker: Path,
    library: str | None,
    file: BinaryIO,
    request: Mapping[str, object],
    limits: Limits,
) -> Iterator[object]:
    """Yields the JSON values that `work(file, request)` of the script `worker` yields.

    `library` names the one package outside the standard library that the worker imports, if it
    needs one. Nothing is yielded before the child has ended well. Raises GuardError when it did
    not.
    """
    order = {
        "worker": str(worker),
        "library": None if library is None else _folder_of(library),
        "descriptor": file.fileno(),
        "limits": asdict(limits),
        "request": dict(request),
    }
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        code = _run_child(json.dumps(order).encode(), file.fileno(), output, complaints, limits)
        if code != 0:
            raise GuardError(_reason(code, complaints, limits))
        output.seek(0)
        for line in output:
            yield _value(line)


def _run_child(
    order: bytes, descriptor: int, output: IO[bytes], complaints: IO[bytes], limits: Limits
) -> int:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_BOOTSTRAP)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=complaints,
        pass_fds=(descriptor,),
        env={},
    ) as child:
        try:
            child.communicate(order, timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired as error:
            raise GuardError(
                f"reading stopped: it took longer than {limits.wall_seconds:g} s; "
                f"{_suspicion(limits)}"
            ) from error
        finally:
            child.kill()
        return child.returncode


def _reason(code: int, complaints: IO[bytes], limits: Limits) -> str:
    memory = f"it needed more than {limits.memory_bytes / (1 << 30):.3g} GB of memory"
    broken = _suspicion(limits)
    if code == MEMORY_EXIT or -code in (signal.SIGABRT, signal.SIGTRAP, signal.SIGILL):
        return f"reading stopped: {memory}; {broken}"
    if code == DEPTH_EXIT:
        return f"reading stopped: its parts are nested too deep; {broken}"
    if code == OUTPUT_EXIT:
        return (
            f"reading stopped: it gave more than {limits.output_bytes >> 20} MB of text; {broken}"
        )
    if code == -signal.SIGXCPU:
        return f"reading stopped: it took more than {limits.cpu_seconds} s of work; {broken}"
    if -code in _CRASHES:
        return f"reading stopped: the reader crashed ({signal.Signals(-code).name}); {broken}"
    if code < 0:
        return f"reading stopped: the reader was ended by signal {-code}; the memory may be full"
    complaints.seek(0)
    last = complaints.read(1 << 16).decode("utf-8", "replace").strip().rpartition("\n")[2]
    return f"reading stopped: {last or f'the reader ended with code {code}'}"


def _suspicion(limits: Limits) -> str:
    return "; ".join(filter(None, ("the file may be damaged or malicious", limits.remedy)))


def _value(line: bytes) -> object:
    try:
        value: object = json.loads(line)
    except ValueError as error:
        raise GuardError from error
    return value


def _folder_of(library: str) -> str:
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise GuardError(f"reading needs {library}; install it with pip install {library}")
    return str(Path(spec.origin).parent.parent)
