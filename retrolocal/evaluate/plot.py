"""The result of `retrolocal eval attention` as an SVG of two axes, the same bytes every time."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import RetrolocalError
from ..measurement import Result
from .calibration import CLASSES, RESOLUTION, Samples, of_class

COLOURS = {"paper": "#c1571b", "wave": "#1f5fa8"}
CLASS_COLOURS = {"diffuse": "#2a9d5c", "middle": "#e0a100", "sharp": "#7a3fa0"}
MOST_POINTS = 2000
"""Of a class in the scatter; evenly chosen from more."""
MOST_TICKS = 24
SMALLEST_ERROR = 1e-9
"""Shown for what is smaller."""


def require_writable(path: Path) -> None:
    """Raises RetrolocalError, before any work, where it is plain that no file can be written."""
    if path.is_dir():
        raise _cannot(path, "it is a folder")
    if not os.access(path.parent, os.W_OK):
        raise _cannot(path, "its folder cannot be written to")


def write_plot(path: Path, result: Result, samples: Sequence[Samples]) -> None:
    """Replaces `path` by the finished file; raises RetrolocalError."""
    # svg.hashsalt: element ids that do not change from run to run.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "svg.hashsalt": "retrolocal"}):
        figure = _figure(result, samples)
        temporary: Path | None = None
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file, warnings.catch_warnings():
                # A name may have characters that the font lacks.
                warnings.simplefilter("ignore")
                figure.savefig(file, format="svg", metadata={"Date": None})
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except OSError as error:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
            raise _cannot(path, error.strerror or str(error)) from error


def _figure(result: Result, samples: Sequence[Samples]) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    model = Path(str(result["model"])).name
    figure.suptitle(
        _plain(
            f"Wave attention against dense: {model}, {result['tokens']:,} tokens of "
            f"{result['file']}, {result['steps']:,} steps"
        )
    )
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_errors(left, result)
    _draw_masses(right, samples)
    return figure


def _draw_errors(axes: Axes, result: Result) -> None:
    rows = result["results"]
    read, dense = result["bytes_per_step"], result["bytes_per_step"]["dense"]
    for scheme, shift in (("paper", -0.12), ("wave", 0.12)):
        at = [number + shift for number in range(len(rows))]
        mean, median, p95 = (
            [max(row[scheme][f"relative_error{suffix}"], SMALLEST_ERROR) for row in rows]
            for suffix in ("", "_median", "_p95")
        )
        colour = COLOURS[scheme]
        axes.vlines(at, median, p95, colors=colour, linewidth=1.5, alpha=0.5)
        axes.plot(
            *(at, mean, "o"),
            color=colour,
            markersize=5 if len(rows) <= 64 else 2.5,
            label=f"{scheme} ({read[scheme] / dense:.1%} of the bytes of dense)",
        )
    axes.set_yscale("log")
    axes.set_title("Error of each head: mean (dot), median to 95th percentile (line)", fontsize=10)
    axes.set_ylabel("relative error of the output (1 = its length)")
    starts = [
        (layer, next(group)[0])
        for layer, group in groupby(enumerate(rows), key=lambda pair: int(pair[1]["layer"]))
    ]
    for _, start in starts[1:]:
        axes.axvline(start - 0.5, color="#dddddd", linewidth=0.8, zorder=0)
    if len(rows) <= MOST_TICKS:
        names = [f"{row['layer']}.{row['head']}" for row in rows]
        axes.set_xticks(range(len(rows)), names)
        axes.set_xlabel("layer.head")
    else:
        shown = starts[:: -(-len(starts) // MOST_TICKS)]
        axes.set_xticks([start for _, start in shown], [str(layer) for layer, _ in shown])
        axes.set_xlabel("layer (its heads from left to right)")
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", color="#eeeeee")
    _legend_below(axes)


def _draw_masses(axes: Axes, samples: Sequence[Samples]) -> None:
    share, believed, real = (
        torch.cat([getattr(one, name).flatten() for one in samples])
        for name in ("share", "believed", "real")
    )
    axes.plot(
        [RESOLUTION, 1], [RESOLUTION, 1], color="#888888", linewidth=1, label="belief = reality"
    )
    classes = [(name, of_class(share, name).nonzero()[:, 0]) for name, _ in CLASSES]
    # The fewest last, so that they are seen.
    for name, which in sorted(classes, key=lambda one: -len(one[1])):
        if len(which) == 0:
            continue
        chosen = which[:: -(-len(which) // MOST_POINTS)]
        axes.scatter(
            real[chosen].clamp(min=RESOLUTION).numpy(),
            believed[chosen].clamp(min=RESOLUTION).numpy(),
            s=8,
            alpha=0.6,
            linewidths=0,
            color=CLASS_COLOURS[name],
            label=f"{name} attention ({len(which):,})",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Mass that wave left to estimation, each step and head", fontsize=10)
    axes.set_xlabel(f"real share of the mass (at least {RESOLUTION:g})")
    axes.set_ylabel(f"believed share of the mass (at least {RESOLUTION:g})")
    axes.grid(color="#eeeeee")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize=9, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _plain(text: str) -> str:
    """Text that is not read as a formula and that XML can hold."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")


def _cannot(path: Path, reason: str) -> RetrolocalError:
    return RetrolocalError(f"--plot: {path} cannot be written ({reason}); give another file")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
