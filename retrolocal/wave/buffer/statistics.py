"""What a wave buffer counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class BufferStatistics:
    """Sums since the buffer was made. A cluster of a memory that compute can read is no hit."""

    hits: NDArray[np.int64]
    """[H]: clusters that a fetch found in the block cache, complete."""
    late: NDArray[np.int64]
    """[H]: that a thread was still reading."""
    misses: NDArray[np.int64]
    """[H]: that the fetch had to read."""
    homeless: int = 0
    """Misses for which no slot could be freed."""
    predicted: int = 0
    """Clusters that threads have read ahead."""
    foreseen: int = 0
    """Those of them that a fetch has asked for."""
    refused: int = 0
    """Predicted clusters that were dropped: the queue was full, or no slot could be freed."""
    stale: int = 0
    """Predicted clusters dropped because the step they were for had come."""
    evicted: int = 0
    bytes_fetched: int = 0
    """Read by fetches from the slow tier."""
    bytes_ahead: int = 0
    """Read by threads from the slow tier."""
