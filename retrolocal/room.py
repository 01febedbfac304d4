"""Whether the contexts of a session fit, and where their keys and values go."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .arguments import size
from .config import SessionConfig
from .errors import UsageError
from .head import Head
from .memory import (
    MemoryEstimate,
    Placement,
    estimate,
    limit,
    placed,
    require_file,
    resident_bytes,
)
from .models.config import ModelConfig
from .paths import spill_dir
from .wave.tiers import Tiers

KEPT_CHUNK = 1024
"""Tokens of a prompt behind a text that is kept, for an estimate of memory."""


@dataclass(slots=True, kw_only=True)
class Room:
    """Of one model with its settings."""

    name: str
    model: ModelConfig
    config: SessionConfig
    dtype: torch.dtype
    device: torch.device
    weight_bytes: int
    keeps: bool
    """Whether what is read goes to the library, which looks after its own disk."""
    loaded: bool = False
    """Whether the weights are in memory."""
    _program_bytes: int = field(default=0, init=False)

    def estimate(self, head: Head, *, weight_bytes: int = 0) -> MemoryEstimate:
        """What a context with this head needs."""
        # What the library has is not read in chunks.
        chunk = min(self.config.batch_size, KEPT_CHUNK) if head.kept else self.config.batch_size
        return estimate(
            self.model,
            weight_bytes=weight_bytes,
            element_bytes=self.dtype.itemsize,
            tokens=len(head.ids),
            chunk_tokens=chunk,
            wave=None if self.config.cache == "dense" else self.config.wave,
        )

    def require(self, head: Head) -> Placement | None:
        """Where this head's keys and values go; None where memory is not the CPU's.

        Raises MemoryLimitError when they go nowhere.
        """
        if self.device.type != "cpu":
            return None
        if not self.loaded:
            # With the texts and the token ids, whose memory nobody estimates.
            self._program_bytes = resident_bytes()
        used, tokens = self._program_bytes, len(head.ids)
        needed = self.estimate(head, weight_bytes=self.weight_bytes)
        # What is free now is free without what is loaded.
        there = limit(self.config.ram, used + (self.weight_bytes if self.loaded else 0))
        found = placed(needed, there, used, model=self.name, tokens=tokens)
        if not self.keeps:
            require_file(needed, found, spill_dir(), tokens=tokens)
        return found

    def tiers(self, head: Head) -> Tiers | None:
        """For the caches of a context with this head; raises as `require`."""
        found = self.require(head)
        if found is None:
            return None
        return Tiers(ram_bytes=found.ram, cache_bytes=found.cache, folder=spill_dir())


def ram_bytes(ram: int | str) -> int:
    """`--ram` as Python has it; raises UsageError."""
    try:
        return ram if isinstance(ram, int) else size(ram)
    except ValueError:
        raise UsageError(f"ram is {ram!r}; give bytes, or a size such as '4G'") from None
