"""The child's side of `guard`: limits itself, then runs one worker on one open file.

Run as a script by a bare interpreter (`-I -S`), so it imports nothing of this package. The order
comes as JSON on standard input; each value that the worker yields goes out as a line of JSON. A
worker may import its siblings: its folder is the package `workers`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

MEMORY_EXIT = 71
OUTPUT_EXIT = 72
DEPTH_EXIT = 73


def main() -> int:
    """Carries out the order; returns the exit code."""
    order = json.load(sys.stdin)
    _limit(order["limits"])
    if order["library"] is not None:
        sys.path.append(order["library"])
    worker = _load(order["worker"])
    try:
        with os.fdopen(order["descriptor"], "rb") as file:
            for value in worker.work(file, order["request"]):
                sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
            sys.stdout.buffer.flush()
    except MemoryError:
        return MEMORY_EXIT
    except RecursionError:
        return DEPTH_EXIT
    except OSError as error:
        if error.errno == errno.EFBIG:
            return OUTPUT_EXIT
        raise
    return 0


def _limit(limits: dict[str, int]) -> None:
    import resource

    wanted = (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, limits["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in wanted:
        # A system that lacks one of them (macOS: address space) still has the wall time.
        with contextlib.suppress(OSError, ValueError):
            # At the hard limit the kernel kills without telling why.
            hard = value + 5 if kind == resource.RLIMIT_CPU else value
            resource.setrlimit(kind, (value, hard))


def _load(path: str) -> Any:
    folder, name = os.path.split(path)
    package = ModuleType("workers")
    package.__path__ = [folder]
    sys.modules["workers"] = package
    sys.dont_write_bytecode = True
    return import_module(f"workers.{name.removesuffix('.py')}")


if __name__ == "__main__":
    # Without the interpreter's own clean-up: a native library may hang or crash in it.
    status = main()
    sys.stderr.flush()
    os._exit(status)
