"""Whether the contexts of a session fit, and where their keys and values go.

The check before a model is loaded or a text is read: by what the plan of it needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral

import torch

from .amounts import size_text
from .arguments import size
from .caches import may_be_clustered, unmeasured
from .config import SessionConfig
from .errors import MemoryLimitError, UsageError
from .head import Head
from .kept_bytes import kept_bytes
from .kernels.compiled import to_compile
from .memory import (
    Limit,
    MemoryEstimate,
    Placement,
    limit,
    placed,
    program_bytes,
    require_file,
)
from .models.config import ModelConfig
from .paths import spill_dir
from .planning import Planner, gpu_limit, needs
from .wave.tiers import Tiers

MEASURING = (
    "measuring from which length on the index is faster here, once for this kind of model and "
    "these settings: up to half a minute"
)
COMPILING = "the first answer compiles attention for this processor, once: up to a minute longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What reading a head takes."""

    tokens: int
    kept: int
    """Tokens at its beginning that need not be read: the library has them."""
    memory: MemoryEstimate
    """Beside the weights."""
    disk: int
    """Bytes that are still to be written to the library."""

    @property
    def whole(self) -> bool:
        """Whether nothing is left to read."""
        return self.kept == self.tokens


@dataclass(slots=True, kw_only=True)
class Room:
    """Of one model with its settings."""

    name: str
    model: ModelConfig
    config: SessionConfig
    dtype: torch.dtype
    device: torch.device
    keeps: bool
    """Whether what is read goes to the library, which looks after its own disk."""
    loaded: bool = False
    """Whether the weights are in memory."""
    _program_bytes: int = field(default=0, init=False)

    def estimate(self, head: Head) -> MemoryEstimate:
        """What a context with this head needs beside the weights."""
        return replace(self._needs(head), weights=0, loading=0)

    def disk_bytes(self, head: Head, known: int) -> int:
        """What the library still has to write of this head, of which it has `known` tokens."""
        return kept_bytes(self.model, self.config, self.dtype, self.device, head, known=known)

    def forecast(self, head: Head, known: int) -> Forecast:
        """The same, and what there is to say before it is read."""
        return Forecast(
            tokens=len(head.ids),
            kept=known,
            memory=self.estimate(head),
            disk=self.disk_bytes(head, known),
        )

    def announce_measuring(self, tell: Callable[[str], None]) -> None:
        """Tells `MEASURING` where what the library keeps is named after a length that nobody has
        measured yet: it is then measured before a text is looked for, however short that is."""
        named = self.config.cache != "dense" and self.config.prefill == "wave"
        if named and unmeasured(self.model, self.config, self.dtype, self.device):
            tell(MEASURING)

    def first_time(self, head: Head) -> str | None:
        """Which of `MEASURING` and `COMPILING` lies before the first answer behind this head.

        What is measured is compiled for it, and a text of one segment at least is.
        """
        if not may_be_clustered(self.model, self.config, len(head.ids)):
            return None
        if not head.kept and unmeasured(self.model, self.config, self.dtype, self.device):
            return MEASURING
        cpu = self.device.type == "cpu"
        return COMPILING if cpu and to_compile(self.config.cache) else None

    def require(self, head: Head) -> Placement | None:
        """Where this head's keys and values go; None where memory is not the CPU's.

        Raises MemoryLimitError when they go nowhere, with the plan that would do.
        """
        needed, tokens = self._needs(head), len(head.ids)
        if self.device.type != "cpu":
            self._require_gpu(needed, tokens)
            return None
        if not self.loaded:
            # With the texts and the token ids, whose memory nobody estimates.
            short = tokens <= self.config.wave.growth_tokens
            self._program_bytes = program_bytes("dense" if short else self.config.cache)
        used = self._program_bytes
        # What is free now is free without what is loaded.
        there = limit(self.config.ram, used + (needed.weights if self.loaded else 0))
        try:
            found = placed(needed, there, used, model=self.name, tokens=tokens)
        except MemoryLimitError as error:
            advice = self._planner("cpu", there, used).advice(tokens)
            raise MemoryLimitError(f"{error}; {advice}") from None
        if not self.keeps:
            require_file(needed, found, spill_dir(), tokens=tokens)
        return found

    def tiers(self, head: Head) -> Tiers | None:
        """For the caches of a context with this head; raises as `require`."""
        found = self.require(head)
        if found is None:
            return None
        return Tiers(ram_bytes=found.ram, cache_bytes=found.cache, folder=spill_dir())

    def _needs(self, head: Head) -> MemoryEstimate:
        first = self.device.type == "cpu" and "numba" not in sys.modules
        ids, kept = head.ids, head.kept
        return needs(self.model, self.config, self.dtype, len(ids), kept=kept, first=first)

    def _require_gpu(self, needed: MemoryEstimate, tokens: int) -> None:
        """What other processes have on the GPU is not free, what this one holds is its own."""
        there = gpu_limit(self.device)
        if needed.total <= there.bytes:
            return
        advice = self._planner("cuda", there, 0).advice(tokens)
        whole, words = there.beside(needed.total)
        raise MemoryLimitError(
            f"{self.name} with {tokens:,} tokens needs about {whole} of GPU "
            f"memory (weights {size_text(needed.weights)}, cache {size_text(needed.cache)}, "
            f"workspace {size_text(needed.workspace)}) and {words}: close what else uses the "
            f"GPU or give --device cpu; {advice}"
        )

    def _planner(self, device: str, there: Limit, program: int) -> Planner:
        return Planner(
            self.name,
            self.model,
            self.config,
            self.dtype,
            device,
            there=there,
            program=program,
        )


def size_in_bytes(name: str, given: int | str) -> int:
    """`--ram` or `--vram` as Python has it; raises UsageError."""
    try:
        return int(given) if isinstance(given, int | Integral) else size(given)
    except (ValueError, AttributeError):
        raise UsageError(f"{name} is {given!r}; give bytes, or a size such as '4G'") from None
