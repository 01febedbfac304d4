"""Ctrl-C where Python cannot handle it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, os, subprocess, time
from retrolocal.tui.leaving import left_promptly
subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -INT {{os.getpid()}}"])
with left_promptly(lambda: print("stopped", flush=True)):
    {work}
"""
COMPILED = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


@pytest.mark.parametrize("work", [COMPILED, "time.sleep(60)"])
def test_an_interrupt_is_told_at_once_and_ends_the_program(work: str) -> None:
    """Also where the main thread is in compiled code."""
    began = time.monotonic()
    program = [sys.executable, "-c", PROGRAM.format(work=work)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped\n"
    assert done.returncode == (130 if work == COMPILED else -2)
    assert time.monotonic() - began < 20


def test_without_an_interrupt_nothing_is_told() -> None:
    code = "from retrolocal.tui.leaving import left_promptly\nwith left_promptly(quit): pass"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
