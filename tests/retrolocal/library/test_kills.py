"""SIGKILL at random moments: the next run continues, and ends with the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_rounds.py")


@pytest.mark.parametrize("rounds", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, rounds: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(rounds), "0"],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split()[-2])
    assert done.stdout.startswith(f"{rounds} of {rounds} rounds")
    assert kills >= rounds // 2
