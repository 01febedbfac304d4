"""Ctrl-C where Python cannot handle it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, os, signal, subprocess, time
from retrolocal.tui.leaving import left_promptly
# Shells start what runs in the background without it.
signal.signal(signal.SIGINT, signal.default_int_handler)
subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -INT {{os.getpid()}}"])
{tell}
with left_promptly(tell):
    {work}
"""
SAYS = "tell = lambda: print('stopped', flush=True)"
FAILS = """
def tell():
    raise BrokenPipeError
"""
BLOCKS = "tell = lambda: time.sleep(300)"
COMPILED = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


@pytest.mark.parametrize("work", [COMPILED, "time.sleep(60)"])
def test_an_interrupt_is_told_at_once_and_ends_the_program(work: str) -> None:
    """Also where the main thread is in compiled code."""
    done = interrupted(SAYS, work)
    assert done.stdout == "stopped\n"
    assert done.returncode == (130 if work == COMPILED else -2)


@pytest.mark.parametrize("tell", [FAILS, BLOCKS])
@pytest.mark.parametrize("work", [COMPILED, "time.sleep(60)"])
def test_what_cannot_be_told_keeps_nobody_here(tell: str, work: str) -> None:
    done = interrupted(tell, work)
    assert done.returncode == (-2 if (tell, work) == (FAILS, "time.sleep(60)") else 130)
    assert "BrokenPipeError" not in done.stderr


def interrupted(tell: str, work: str) -> subprocess.CompletedProcess[str]:
    """What a program that is at work left behind after Ctrl-C, in good time."""
    began = time.monotonic()
    program = [sys.executable, "-c", PROGRAM.format(tell=tell, work=work)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 20
    return done


def test_on_another_thread_it_is_refused_and_leaves_nothing_open() -> None:
    code = """
import os, threading
from retrolocal.tui.leaving import left_promptly

def enter():
    try:
        with left_promptly(lambda: None):
            pass
    except ValueError:
        print("refused")

def next_descriptor():
    reader, writer = os.pipe()
    os.close(reader), os.close(writer)
    return reader

before = next_descriptor()
thread = threading.Thread(target=enter)
thread.start()
thread.join()
print(next_descriptor() == before, threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "refused\nTrue 1\n"


def test_without_an_interrupt_nothing_is_told() -> None:
    code = (
        "from retrolocal.tui.leaving import left_promptly\n"
        "with left_promptly(lambda: print('stopped', flush=True)): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
