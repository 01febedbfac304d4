"""Speeds as llama-bench shows them."""

from __future__ import annotations

from ..measurement import Result, table

COLUMNS = ("model", "size", "params", "device", "threads", "cache", "test", "t/s")


def speed_table(result: Result) -> list[str]:
    """The `results` of `bench decode` and `bench prefill`, one row each."""
    rows = [
        (
            row["model"],
            _bytes(row["size_bytes"]),
            _count(row["params"]),
            f"{row['device']} {row['dtype']}",
            str(row["threads"]),
            row["cache"],
            row["test"],
            f"{row['mean_tps']:.2f} ± {row['stddev_tps']:.2f}",
        )
        for row in result["results"]
    ]
    return table(COLUMNS, rows)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.2f} MiB"


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.2f} M"
