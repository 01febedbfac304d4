"""When the memory of a GPU is full: less of it is used, in one line said so, and work goes on.

First the block caches are halved, which costs transfers; where there is nothing left of them a
prompt is read in pieces of half the tokens. Where neither helps the error stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch

LEAST_CHUNK = 256
"""Tokens of a prompt that are read at once at least; fewer save nothing that counts."""
FULL = "the GPU's memory is full: "
SMALLER_CACHE = (
    FULL + "less of it is used for clusters that are often wanted, more is read over the bus"
)


@runtime_checkable
class Shrinking(Protocol):
    """A layer cache with a block cache; `WaveCache`."""

    def shrink_block_cache(self) -> int:
        """Gives half of it back; returns its bytes, 0 when there was none."""
        ...


class Relief:
    """Of one session; what was given back stays so."""

    def __init__(
        self, chunk_tokens: int = 1 << 62, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        """`chunk_tokens` of a prompt are read at once."""
        self.chunk_tokens = chunk_tokens
        self._tell = tell
        self._told: set[str] = set()

    def tell(self, line: str) -> None:
        """Passes a line on, once."""
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def for_step(self, caches: Iterable[Any]) -> bool:
        """Whether a decode step may be tried again."""
        given = [cache.shrink_block_cache() for cache in caches if isinstance(cache, Shrinking)]
        if not any(given):
            return False
        _give_back()
        self.tell(SMALLER_CACHE)
        return True

    def for_prompt(self, caches: Iterable[Any], tokens: int) -> bool:
        """Whether a piece of so many tokens may be tried again, `chunk_tokens` of it."""
        if self.for_step(caches):
            return True
        halved = min(tokens, self.chunk_tokens) // 2
        if halved < LEAST_CHUNK:
            return False
        _give_back()
        self.chunk_tokens = halved
        self.tell(f"{FULL}the text is read {halved:,} tokens at a time")
        return True


def _give_back() -> None:
    """What PyTorch keeps for itself, so that pieces of another size fit into it."""
    torch.cuda.empty_cache()
