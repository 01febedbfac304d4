"""What the wave cache is doing: memory, speed, zones, how much of the attention is exact.

A line stands only where the engine has the figure: no bar for a GPU that is not there, no hit
ratio without a block cache, no zones while the cache is dense.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from textual.content import Content
from textual.widgets import Static

from .activity import size
from .engine import CacheFigures, Measured
from .library_panel import heading, meter, row

STEPS = "▁▂▃▄▅▆▇█"
REMEMBERED = 12
"""Figures that a small graph shows."""


class WavePanel(Static):
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(markup=False)
        self.device = ""
        self._clock = clock
        self._measured: Measured | None = None
        self._before: tuple[float, int] | None = None
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._hits: deque[float] = deque(maxlen=REMEMBERED)
        self._rate = 0.0
        self._shown = -1
        """Lines on the screen."""

    def on_mount(self) -> None:
        self._draw()

    def show_figures(self, measured: Measured) -> None:
        """Takes the newest figures; the rate is that between two of them."""
        now, tokens = self._clock(), measured.generated_tokens
        if not tokens:
            # Of a text that is read or a chat that is opened: no answer has a speed yet.
            self._before, self._rate = None, 0.0
            self._rates.clear()
            self._hits.clear()
        if self._before is not None and tokens > self._before[1] and now > self._before[0]:
            self._rate = (tokens - self._before[1]) / (now - self._before[0])
            self._rates.append(self._rate)
        self._before = (now, tokens)
        self._measured = measured
        if measured.cache is not None and measured.cache.hit_ratio is not None:
            self._hits.append(measured.cache.hit_ratio)
        self._draw()

    def show_rate(self, rate: float) -> None:
        """The rate of a whole answer."""
        self._rate = rate
        self._before = None
        self._draw()

    def _draw(self) -> None:
        lines = self.lines()
        self.update(Content("\n").join(lines), layout=len(lines) != self._shown)
        self._shown = len(lines)

    def lines(self) -> list[Content]:
        """What the panel says."""
        if self._measured is None:
            return []
        cache = self._measured.cache
        name = "Cache" if cache is None else f"{cache.kind.capitalize()} cache"
        lines = [heading(name, {"cuda": "GPU"}.get(self.device, self.device.upper()))]
        for one in self._measured.memory:
            value = f"{one.used / 1e9:.1f}/{one.limit / 1e9:.1f} GB"
            lines.append(meter(one.name, one.used / one.limit if one.limit else 0.0, value))
        if cache is not None:
            lines += self._cache_lines(cache)
        return lines

    def _cache_lines(self, cache: CacheFigures) -> list[Content]:
        lines = [row(" keys and values", size(cache.cache_bytes))]
        if cache.index_bytes:
            lines.append(row(" index", size(cache.index_bytes)))
        if cache.hit_ratio is not None:
            lines.append(_drawn("hits", self._hits, 1.0, f"{cache.hit_ratio:.0%}"))
        if self._rate:
            most = max(self._rates, default=0.0)
            lines.append(_drawn("speed", self._rates, most, f"{self._rate:.1f} tok/s"))
        if cache.bytes_per_step:
            lines.append(row(" read per token", size(cache.bytes_per_step)))
        if cache.slow_bytes is not None:
            lines.append(row(" of it from the slow tier", size(cache.slow_bytes)))
        if cache.kind == "wave":
            lines += _zones(cache)
        return lines


def _zones(cache: CacheFigures) -> list[Content]:
    clustered = max(0, cache.tokens - cache.steady_tokens)
    retrieved = min(float(clustered), cache.retrieved_tokens)
    share = f" ({retrieved / clustered:.1%})" if clustered else ""
    return [
        Content(""),
        heading("Zones", "tokens per step"),
        row(" steady", f"{cache.steady_tokens:,}"),
        row(" retrieval", f"{retrieved:,.0f}{share}"),
        row(" estimation", f"{clustered - retrieved:,.0f}"),
        row(" attention seen exactly", f"{cache.mass_exact:.1%}"),
        row(" attention estimated", f"{cache.mass_estimated:.1%}"),
    ]


def _drawn(name: str, values: deque[float], most: float, value: str) -> Content:
    """A name, how its value went, its value."""
    graph = sparks(values, most) if len(values) > 1 else ""
    return row(f" {name:<9}{graph}", value)


def sparks(values: deque[float], most: float) -> str:
    """A small graph, one cell per value."""
    if most <= 0:
        return ""
    last = len(STEPS) - 1
    return "".join(STEPS[min(last, max(0, round(value / most * last)))] for value in values)
