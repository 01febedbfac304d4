"""The options of the evaluations as frozen values, checked where they enter. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..config import SessionConfig, require_model
from ..errors import UsageError
from ..measurement import require_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOptions:
    """`retrolocal eval attention`: wave attention against dense, on a real model and text."""

    model: str
    """A folder, a Hub id or `builtin`."""
    file: str
    """The text to read; `-` is stdin."""
    tokens: int | None = None
    """Tokens of the text to read; None: all of them."""
    questions: int = 16
    """Places of the text whose queries are compared."""
    plot: Path | None = None
    """An SVG to write."""
    session: SessionConfig = field(default_factory=SessionConfig)
    """Device, dtype, threads; its `cache` is not used."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_model(self.model)
        for flag, number in (("--tokens", self.tokens), ("--questions", self.questions)):
            if number is not None and number < 1:
                raise UsageError(f"{flag} is {number:,}; it must be at least 1")
        if self.plot is not None and self.plot.suffix != ".svg":
            raise UsageError(f"--plot is {self.plot}; give a file that ends in .svg")
        if self.plot is not None and not self.plot.parent.is_dir():
            raise UsageError(f"--plot: there is no folder {self.plot.parent}; make it first")
        require_seed(self.seed)

    @property
    def compares(self) -> str:
        length = "all" if self.tokens is None else f"the first {self.tokens:,}"
        return (
            f"wave attention with dense attention, under the queries of {self.model} at "
            f"{self.questions:,} places, over {length} tokens of {self.file}"
        )

    @property
    def notes(self) -> list[str]:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantOptions:
    """`retrolocal eval quant`: predictions with quantised weights against those in bfloat16."""

    model: str
    """A folder, a Hub id or `builtin`."""
    file: str | None = None
    """The text to read; `-` is stdin, None a text that comes with the program."""
    tokens: int = 512
    """Tokens of the text to read at most."""
    quants: tuple[str, ...] = ("int8", "int4")
    session: SessionConfig = field(default_factory=lambda: SessionConfig(dtype="bfloat16"))
    """Device, dtype, threads; its `quant` and `cache` are not used."""

    def __post_init__(self) -> None:
        require_model(self.model)
        if self.tokens < 2:
            raise UsageError(f"--tokens is {self.tokens:,}; give at least 2")
        for quant in self.quants:
            if quant not in ("int8", "int4"):
                raise UsageError(f"--quant is {quant!r}; give int8, int4 or both (int8,int4)")

    @property
    def compares(self) -> str:
        text = "its own description of the library" if self.file is None else self.file
        return (
            f"next-token predictions of {self.model} with weights in {' and '.join(self.quants)} "
            f"with those in {self.session.dtype}, over at most {self.tokens:,} tokens of {text}"
        )

    @property
    def notes(self) -> list[str]:
        return ["kl: Kullback-Leibler divergence from the unquantised model, nats per position"]
