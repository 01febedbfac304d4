"""The result of `retrolocal eval attention` as text, at most 100 columns wide. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from ..measurement import Result, table

MOST_ROWS = 64
"""Longer tables show one row per layer, or per class."""
SCHEMES = (
    ("dense", "dense"),
    ("paper", "paper"),
    ("wave", "wave"),
    ("wave_equal", "wave, paper's bytes"),
)
FACTS = (
    *("model", "file", "tokens", "questions", "steps", "heads", "kv_heads", "head_dim"),
    *("dtype", "device", "threads"),
)
Row = dict[str, Any]


def attention_lines(result: Result) -> list[str]:
    lines = [f"{name}: {_fact(result[name])}" for name in FACTS]
    lines += ["layers: " + ", ".join(map(str, result["layers"])), "", *_reads(result)]
    lines += ["", *_stores(result), "", *_errors(result), "", *_calibration(result)]
    if "plot" in result:
        lines += ["", f"plot: {result['plot']}"]
    return lines


def _reads(result: Result) -> list[str]:
    read, dense = result["bytes_per_step"], result["bytes_per_step"]["dense"]
    rows = []
    for key, title in SCHEMES:
        own = [row[key] for row in result["results"] if key in row]
        tokens = fmean(row["retrieved_tokens"] for row in own) if own else result["tokens"]
        error = _short(fmean(row["relative_error"] for row in own)) if own else "0"
        exact = f"{fmean(row['mass_exact'] for row in own):.2%}" if own else "100%"
        share = f"{read[key] / dense:.2%}"
        rows.append((title, f"{read[key] / 1024:,.1f}", share, f"{tokens:,.0f}", exact, error))
    names = ("scheme", "KiB per step", "of dense", "tokens retrieved", "mass exact", "mean error")
    return [
        *table(names, rows),
        f"the {result['steady_tokens']:,} steady tokens come on top of what paper and wave read; "
        "in no layer and step",
        f"wave reads more than {result['most_bytes_of_paper']:.2f} of the paper's bytes",
    ]


def _stores(result: Result) -> list[str]:
    """A row for each type: with the program's settings, then at the bytes of the paper's scheme."""
    rows = []
    for own in result["stores"]:
        if own["scheme"] != "wave":
            continue
        [equal] = (
            row
            for row in result["stores"]
            if (row["store_type"], row["scheme"]) == (own["store_type"], "wave_equal")
        )
        cells = [own["store_type"], f"{own['bytes_per_token']:,}"]
        cells.append(f"{own['bytes_per_step'] / 1024:,.1f}")
        for row in (own, equal):
            cells.append(f"{row['retrieved_tokens']:,.0f}")
            cells += [_short(row["relative_error"]), _short(row["relative_error_p95"])]
        rows.append(cells)
    each = ("tokens", "error", "p95")
    names = ("store", "B/token", "KiB per step", *each, *(f"eq. {name}" for name in each))
    return [
        "types of store; eq.: with as many tokens as read the paper's bytes",
        *table(names, rows),
    ]


def _errors(result: Result) -> list[str]:
    rows, single = result["results"], len(result["results"]) <= MOST_ROWS
    groups = [[row] for row in rows]
    if not single:
        groups = [list(group) for _, group in groupby(rows, key=lambda row: int(row["layer"]))]
    cells = [
        (
            f"{group[0]['layer']}.{group[0]['head']}" if single else str(group[0]["layer"]),
            _count(_mean(group, lambda row: row["sharpness"])),
            _short(_mean(group, lambda row: row["paper"]["relative_error"])),
            _short(_mean(group, lambda row: row["paper"]["relative_error_p95"])),
            _short(_mean(group, lambda row: row["wave"]["relative_error"])),
            _short(_mean(group, lambda row: row["wave"]["relative_error_p95"])),
            _short(max(row["error_ratio"] for row in group)),
            _short(max(row["error_ratio_equal"] for row in group)),
            f"{_mean(group, lambda row: row['paper']['mass_exact']):.2%}",
            f"{_mean(group, lambda row: row['wave']['mass_exact']):.2%}",
        )
        for group in groups
    ]
    first = "head" if single else "layer"
    names = (first, "tokens", "paper", "p95", "wave", "p95", "ratio", "equal", "exact p", "exact w")
    heads = [] if single else ["each row is the mean of its heads, its ratios are the worst ones"]
    return [
        "error of the output relative to its length, mean and 95th percentile; tokens: how many",
        "hold 90% of the mass; ratio: wave to paper, and at equal bytes; exact: true share of the",
        "mass that was attended exactly",
        *heads,
        *table(names, cells),
        f"worst ratio: {result['worst_error_ratio']:.3g}, at equal bytes "
        f"{result['worst_error_ratio_equal']:.3g}",
    ]


def _calibration(result: Result) -> list[str]:
    rows = result["calibration"]
    if len(result["layers"]) == 1:
        rows = [row for row in rows if row["layer"] is not None]
    if len(rows) > MOST_ROWS:
        rows = [row for row in rows if row["layer"] is None]
    cells = [
        (
            "all" if row["layer"] is None else str(row["layer"]),
            row["class"],
            f"{row['samples']:,}",
            _short(row["believed_median"]),
            _short(row["real_median"]),
            f"{row['compared']:,}",
            *(_short(row[name]) for name in ("ratio_median", "ratio_p5", "ratio_p95")),
        )
        for row in rows
    ]
    names = ("layer", "attention", "samples", "believed", "real", "compared", "ratio", "p5", "p95")
    classes = result["settings"]["classes"]
    return [
        "mass that a step of wave left to estimation, as believed and real (medians), and their",
        f"ratio where one of them is above {result['settings']['resolution']:g}",
        *(f"{name}: {meaning}" for name, meaning in classes.items()),
        *table(names, cells, left=2),
    ]


def _mean(rows: Sequence[Row], of: Callable[[Row], float]) -> float:
    return fmean(map(of, rows))


def _fact(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 100 else f"{value:,.0f}"
