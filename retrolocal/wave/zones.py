"""Which token is in which zone: plain integers, no tensors.

    0 ... sinks | clustered segments, one after another | pending | window ... tokens
    `- steady -'`------- retrieval and estimation ------'`------- steady -------'

Every token is in exactly one of: the sinks, one segment, the pending tokens, the window. Segments
never change. Full segments are cut as soon as they fit; while generating, a shorter one is begun
when `growth_tokens` are pending.
"""

from __future__ import annotations

import math
from itertools import count

from ..config import WaveConfig

PAPER_RETRIEVED, PAPER_ESTIMATED = 0.018, 0.232
"""Shares of the clusters that RetroInfer (arXiv 2505.02922) retrieves and estimates."""


def pending(tokens: int, clustered_end: int, config: WaveConfig) -> int:
    """Tokens between what is clustered and the window; negative when the window is not full."""
    return tokens - config.window_tokens - max(clustered_end, config.sink_tokens)


def segment_end(start: int, config: WaveConfig, chunk_tokens: int | None = None) -> int:
    """Where a full segment from position `start` on ends.

    Under dual chunk attention no segment lies in two chunks: queries ask for them differently.
    """
    end = start + config.segment_tokens
    return end if chunk_tokens is None else min(end, (start // chunk_tokens + 1) * chunk_tokens)


def next_segment(
    tokens: int, clustered_end: int, config: WaveConfig, chunk_tokens: int | None = None
) -> range | None:
    """Token positions of the full segment to cut now, or None.

    `tokens` are held; those from `sink_tokens` to `clustered_end` are in segments already.
    """
    start = max(clustered_end, config.sink_tokens)
    end = segment_end(start, config, chunk_tokens)
    return range(start, end) if end <= tokens - config.window_tokens else None


def piece_end(tokens: int, config: WaveConfig, chunk_tokens: int | None = None) -> int:
    """Length of a context, above `tokens`, at which a prompt's next full segment is cut."""
    covered = max(0, tokens - config.window_tokens)
    chunk = 0 if chunk_tokens is None else covered // chunk_tokens * chunk_tokens
    first = max(chunk, config.sink_tokens)
    first += max(0, covered - first) // config.segment_tokens * config.segment_tokens
    return segment_end(first, config, chunk_tokens) + config.window_tokens


def next_growth(
    tokens: int, clustered_end: int, config: WaveConfig, chunk_tokens: int | None = None
) -> range | None:
    """The same while generating: shorter segments, once `growth_tokens` are pending."""
    start, waiting = max(clustered_end, config.sink_tokens), pending(tokens, clustered_end, config)
    if waiting < min(config.growth_tokens, config.segment_tokens):
        return None
    return range(start, min(start + waiting, segment_end(start, config, chunk_tokens)))


def fewest_tokens(config: WaveConfig) -> int:
    """Tokens of the shortest context that is generated in and of which something is clustered."""
    first = config.sink_tokens
    return next(n for n in count(first) if next_growth(n, first, config) is not None)


def initial_centroids(tokens: int, config: WaveConfig) -> int:
    """Centroids that k-means starts with: with the outliers one per `cluster_tokens`."""
    return max(1, -(-tokens // config.cluster_tokens) - outliers(tokens, config))


def groups(clusters: int, config: WaveConfig) -> int:
    """Groups that so many clusters are put into."""
    return max(1, round(clusters / config.group_clusters))


def outliers(tokens: int, config: WaveConfig) -> int:
    """Tokens of a segment that become clusters of their own."""
    return math.floor(config.outlier_fraction * tokens) if config.scheme == "wave" else 0
