from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrolocal.ingest.guard import GuardError, Limits, run_guarded

Run = Callable[..., list[object]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the body of a `work(file, request)` on a file that holds `data`."""

    def run(body: str, library: str | None = None, **limits: Any) -> list[object]:
        worker = tmp_path / "worker.py"
        worker.write_text(f"import os, signal, sys, time\ndef work(file, request):\n    {body}\n")
        data = tmp_path / "data"
        data.write_bytes(b"data")
        with data.open("rb") as file:
            made = Limits(**limits)
            return list(run_guarded(worker, library, file, {"key": "é"}, made))

    return run


def test_values_come_back(run: Run) -> None:
    assert run("yield [file.read().decode(), request]; yield 2") == [["data", {"key": "é"}], 2]


def test_a_worker_may_import_its_library_and_its_siblings(run: Run, tmp_path: Path) -> None:
    assert run("import pypdfium2; yield pypdfium2.__name__", library="pypdfium2") == ["pypdfium2"]
    (tmp_path / "html.py").write_text("WORD = 'sibling'")
    body = "import html; from . import html as own; yield [own.WORD, hasattr(html, 'escape')]"
    assert run(body) == [["sibling", True]]
    with pytest.raises(GuardError, match="No module named 'pypdfium2'"):
        run("import pypdfium2; yield")


def test_nothing_of_the_environment_goes_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROLOCAL_SECRET", "x")
    (modules,) = run("yield [n for n in sys.modules if 'retrolocal' in n or n == 'site']")
    assert modules == []
    assert run("yield 'RETROLOCAL_SECRET' in os.environ") == [False]


@pytest.mark.parametrize(
    ("body", "limits", "message"),
    [
        ("time.sleep(60); yield", {"wall_seconds": 0.5}, "took longer than 0.5 s"),
        ("while True: pass\n    yield", {"cpu_seconds": 1}, "took more than 1 s of work"),
        ("yield bytes(1 << 31)", {"memory_bytes": 1 << 29}, "more than 0.5 GB of memory"),
        ("os.abort(); yield", {}, "more than 2 GB of memory"),
        ("yield 'x' * 100000", {"output_bytes": 1 << 10}, "gave more than 0 MB of text"),
        ("os.kill(os.getpid(), signal.SIGSEGV); yield", {}, "crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL); yield", {}, "ended by signal 9"),
        ("raise KeyError('no'); yield", {}, "KeyError: 'no'"),
        ("raise RecursionError; yield", {}, "its parts are nested too deep"),
        ("os._exit(3); yield", {}, "ended with code 3"),
        ("os.write(1, b'junk'); yield 1", {}, "makes no sense"),
    ],
)
def test_failures(run: Run, body: str, limits: dict[str, float], message: str) -> None:
    with pytest.raises(GuardError) as caught:
        run(body, **limits)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_that_the_user_lifts(run: Run) -> None:
    usual, forced = (Limits.usual(cpu_seconds=7, is_forced=given) for given in (False, True))
    assert (usual.memory_bytes, usual.cpu_seconds, usual.wall_seconds) == (2 << 30, 7, 300)
    assert (forced.memory_bytes, forced.cpu_seconds, forced.wall_seconds) == (8 << 30, 28, 1200)
    assert forced.remedy == ""
    for body, limit in (("time.sleep(60); yield", "wall"), ("raise MemoryError; yield", "")):
        with pytest.raises(GuardError) as caught:
            run(body, remedy=usual.remedy, **({"wall_seconds": 0.5} if limit else {}))
        assert str(caught.value).endswith("malicious; --force allows 4 times as much")


def test_missing_library(run: Run) -> None:
    with pytest.raises(GuardError, match="reading needs no_such_library"):
        run("yield 1", library="no_such_library")
