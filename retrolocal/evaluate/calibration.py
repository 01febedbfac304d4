"""What a step believes to have left to estimation against what it really did, by sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DIFFUSE, SHARP = 0.05, 0.001
"""Shares of the tokens: attention whose mass needs more is diffuse, less is sharp."""
CLASSES = (
    ("diffuse", f"more than {DIFFUSE:.0%} of the tokens"),
    ("middle", f"{SHARP:.1%} to {DIFFUSE:.0%}"),
    ("sharp", f"less than {SHARP:.1%}"),
)
RESOLUTION = 1e-5
"""Shares of the mass below this are lost in the rounding of float32."""


@dataclass(frozen=True, slots=True)
class Samples:
    """S steps of Hq query heads of one layer."""

    layer: int
    share: Tensor
    """float64 [S, Hq]: of the tokens, that holds most of the true mass."""
    believed: Tensor
    """float64 [S, Hq]: share of the mass that a step thought it left to estimation."""
    real: Tensor
    """float64 [S, Hq]."""


def sharpness_class(share: float) -> str:
    """Of attention whose mass lies in this share of the tokens."""
    return "diffuse" if share > DIFFUSE else "sharp" if share < SHARP else "middle"


def of_class(share: Tensor, name: str) -> Tensor:
    """Which of these shares are of a class: bool of the same shape."""
    match name:
        case "diffuse":
            return share > DIFFUSE
        case "sharp":
            return share < SHARP
        case _:
            return (share >= SHARP) & (share <= DIFFUSE)


def calibration(layers: Sequence[Samples]) -> list[dict[str, Any]]:
    """A row per layer and class that occurs, then one per class over all layers (layer None)."""
    groups: list[tuple[int | None, Sequence[Samples]]] = [(one.layer, [one]) for one in layers]
    rows = []
    for layer, samples in [*groups, (None, layers)]:
        share, believed, real = (
            torch.cat([getattr(one, name).flatten() for one in samples])
            for name in ("share", "believed", "real")
        )
        for name, _ in CLASSES:
            which = of_class(share, name)
            if which.any():
                rows.append(
                    {"layer": layer, "class": name, **_calibrated(believed[which], real[which])}
                )
    return rows


def _calibrated(believed: Tensor, real: Tensor) -> dict[str, Any]:
    """Ratios are of the samples where one of both masses is above the resolution."""
    there = (believed >= RESOLUTION) | (real >= RESOLUTION)
    ratio: list[float | None] = [None, None, None]
    if there.any():
        ratios = believed[there].clamp(min=RESOLUTION) / real[there].clamp(min=RESOLUTION)
        at = torch.tensor([0.5, 0.05, 0.95], dtype=torch.float64)
        ratio = [float(value) for value in _quantiles(ratios, at)]
    return {
        "samples": believed.numel(),
        "compared": int(there.sum()),
        "believed_median": max(0.0, float(believed.median())),
        "real_median": max(0.0, float(real.median())),
        "ratio_median": ratio[0],
        "ratio_p5": ratio[1],
        "ratio_p95": ratio[2],
    }


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Nearest-rank quantiles of any number of values (torch.quantile takes 16 million)."""
    ordered = values.sort().values
    return ordered[(at * (len(ordered) - 1)).round().long()]
