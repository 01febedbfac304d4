"""Results as text."""

from __future__ import annotations

from retrolocal.measurement import facts_and_table, table


def test_facts_and_table() -> None:
    result = {
        "compares": "one thing with another",
        "notes": ["said before"],
        "tokens": 131072,
        "error": {"mean": 0.123456, "worst": None},
        "heads": [28, 4],
        "results": [
            {"cache": "dense", "step_ms": {"median": 12.5, "max": 1000000}},
            {"cache": "wave", "step_ms": {"median": 1.0}, "exact": False},
        ],
    }
    assert facts_and_table(result) == [
        "tokens: 131,072",
        "error.mean: 0.1235",
        "error.worst: ",
        "heads: 28, 4",
        "| cache | step_ms.median | step_ms.max | exact |",
        "| ----- | -------------: | ----------: | ----: |",
        "| dense |           12.5 |   1,000,000 |       |",
        "| wave  |              1 |             | False |",
    ]


def test_facts_alone() -> None:
    assert facts_and_table({"error": 0.25}) == ["error: 0.25"]


def test_a_table_without_rows() -> None:
    assert table(["a", "bcd"], []) == ["| a  | bcd |", "| -- | --: |"]
