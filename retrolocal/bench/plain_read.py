"""Reading files and nothing else: what anything that needs their bytes is compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

READ = 1 << 20
"""Bytes at a time."""


def read_seconds(files: Sequence[Path]) -> float:
    """Of reading files through one small buffer, as `cat FILES > /dev/null` does."""
    began, buffer = time.perf_counter(), memoryview(bytearray(READ))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def copy_seconds(files: Sequence[Path]) -> float:
    """Of reading files into memory that the program did not have before, one by one."""
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            file.read()
    return time.perf_counter() - began


def drop(files: Sequence[Path]) -> None:
    """Asks the system to forget the contents of files."""
    for path in files:
        with path.open("rb") as file:
            # What is not on the disk yet cannot be forgotten.
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
