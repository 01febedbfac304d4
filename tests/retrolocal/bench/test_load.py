"""The program's start against a plain read: what is timed, and what is refused."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import pytest

from retrolocal.bench.load import _anonymous
from retrolocal.bench.programs import timed
from retrolocal.cli import main, uncollected
from retrolocal.errors import DataError


def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--repeats", "0"], "--repeats is 0"),
        (["-m", ""], "--model is empty"),
        (["--quant", "int5"], "--quant is 'int5'"),
    ):
        assert main(["bench", "load", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_run_is_timed_to_its_first_byte_and_to_its_end() -> None:
    code = "import time; print('{', end='', flush=True); time.sleep(0.3); print('\"a\": 1}')"
    found = timed([sys.executable, "-c", code], os.environ)
    assert found.facts == {"a": 1}
    assert found.answered + 0.25 < found.seconds


def test_what_a_program_says_reaches_the_user() -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('it is not there')"]
    with pytest.raises(DataError, match="ended with 1: it is not there"):
        timed(words, os.environ)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
def test_memory_of_files_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 << 20))
    code = (
        "import mmap, time; file = open('file', 'rb');"
        "m = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(m[::4096]);"
        "b = b'x' * (BYTES); time.sleep(1); print('{}')"
    )
    most = {
        size: _anonymous(
            [
                sys.executable,
                "-c",
                f"import os; os.chdir({str(tmp_path)!r})\n"
                + code.replace("BYTES", str(size << 20)),
            ],
            dict(os.environ),
        )
        for size in (1, 33)
    }
    assert most[1] is not None
    assert most[33] is not None
    assert 28 << 20 < most[33] - most[1] < 36 << 20
    assert most[1] < 48 << 20


def test_what_is_imported_is_not_looked_through_again() -> None:
    code = (
        "import gc, json\n"
        "from retrolocal.cli import uncollected\n"
        "with uncollected(): inside = gc.isenabled()\n"
        "print(json.dumps([inside, gc.isenabled(), gc.get_freeze_count() > 1000]))"
    )
    assert timed([sys.executable, "-P", "-c", code], os.environ).facts == [False, True, True]
    with uncollected():
        assert gc.isenabled(), "garbage of a program that goes on must not be kept"


@pytest.mark.slow
def test_a_start_is_taken_apart(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "load", "-m", str(tiny_model), "-r", "2", "--cold", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    parts = facts["start_parts_seconds"]
    assert set(parts) == {"program", "weights", "first_step", "rest"}
    assert sum(parts.values()) >= 0.99 * facts["start_seconds"] - 0.01
    assert min(parts.values()) >= 0
    assert facts["start_over_read"] == facts["start_seconds"] / facts["read_seconds"]
    assert all(len(times) == 2 for times in facts["samples"].values())
    assert facts["page_cache"] == "cold"
