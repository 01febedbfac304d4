"""Results as text."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrolocal.errors import UsageError
from retrolocal.measurement import (
    Measurement,
    common_options,
    facts_and_table,
    run_one_of,
    table,
)


def test_facts_and_table() -> None:
    result = {
        "compares": "one thing with another",
        "notes": ["said before"],
        "tokens": 131072,
        "error": {"mean": 0.123456, "worst": None},
        "heads": [4, 4],
        "layers": [{"window": 32}, {"window": 32}, {"window": None}],
        "results": [
            {"cache": "dense", "step_ms": {"median": 12.5, "max": 1000000}},
            {"cache": "wave", "step_ms": {"median": 1.0}, "exact": False},
        ],
    }
    assert facts_and_table(result) == [
        "tokens: 131,072",
        "error.mean: 0.1235",
        "error.worst: ",
        "heads: 4, 4",
        "layers: 2 x (window 32), 1 x (window none)",
        "| cache | step_ms.median | step_ms.max | exact |",
        "| ----- | -------------: | ----------: | ----: |",
        "| dense |           12.5 |   1,000,000 |       |",
        "| wave  |              1 |             |    no |",
    ]


def test_facts_alone() -> None:
    assert facts_and_table({"error": 0.25}) == ["error: 0.25"]


def test_a_table_without_rows() -> None:
    assert table(["a", "bcd"], []) == ["| a  | bcd |", "| -- | --: |"]


@dataclass(frozen=True)
class Nothing:
    compares: str = "nothing with nothing"
    notes: tuple[str, ...] = ()


def measured(options: Nothing, progress: Callable[[str], None]) -> dict[str, Any]:
    return {"tokens": 7}


def measurement() -> dict[str, Measurement]:
    def parser() -> ArgumentParser:
        made = ArgumentParser()
        common_options(made.add_argument_group("run"))
        return made

    return {
        "seven": Measurement(
            summary="seven",
            parser=parser,
            options=lambda arguments: Nothing(),
            module="seven",
            lines=facts_and_table,
        )
    }


def test_out_is_the_folder_of_a_json_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "seven", SimpleNamespace(run=measured))  # type: ignore[arg-type]
    folder = tmp_path / "new" / "folder"
    assert run_one_of("bench", measurement(), "", ["seven", "--out", str(folder)]) == 0
    assert [file.name for file in folder.iterdir()] == ["bench-seven.json"]
    written = json.loads((folder / "bench-seven.json").read_text())
    assert written == {"compares": "nothing with nothing", "notes": [], "tokens": 7}
    assert "tokens: 7" in capsys.readouterr().out
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out is .*file/inside"):
        run_one_of(
            "bench", measurement(), "", ["seven", "--out", str(tmp_path / "file" / "inside")]
        )
