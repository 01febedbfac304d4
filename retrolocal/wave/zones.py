"""Which token is in which zone: plain integers, no tensors.

    0 ... sinks | clustered segments, one after another | pending | window ... tokens
    `- steady -'`------- retrieval and estimation ------'`------- steady -------'

Every token is in exactly one of: the sinks, one segment, the pending tokens, the window. Segments
never change. Full segments are cut as soon as they fit; while generating, a shorter one is cut
when more than `growth_tokens` are pending.
"""

from __future__ import annotations

import math

from ..config import WaveConfig

PAPER_RETRIEVED, PAPER_ESTIMATED = 0.018, 0.232
"""Shares of the clusters that RetroInfer (arXiv 2505.02922) retrieves and estimates."""
AUTO_BUDGET, AUTO_FLOOR = 0.018, 64
"""`--budget auto`: this share of the clusters, and never fewer than the floor."""


def next_segment(
    tokens: int, clustered_end: int, config: WaveConfig, *, generating: bool
) -> range | None:
    """Token positions of the segment to cut now, or None.

    `tokens` are held; those from `sink_tokens` to `clustered_end` are in segments already.
    """
    start = max(clustered_end, config.sink_tokens)
    pending = tokens - config.window_tokens - start
    if pending >= config.segment_tokens:
        return range(start, start + config.segment_tokens)
    if generating and pending > config.growth_tokens:
        return range(start, start + pending)
    return None


def retrieved_clusters(clusters: int, config: WaveConfig) -> int:
    """How many of a head's clusters are attended exactly."""
    if config.budget is not None:
        wanted = math.ceil(config.budget * clusters)
    elif config.scheme == "paper":
        wanted = max(round(PAPER_RETRIEVED * clusters), 1)
    else:
        wanted = max(math.ceil(AUTO_BUDGET * clusters), AUTO_FLOOR)
    return min(wanted, clusters)


def estimated_clusters(clusters: int, retrieved: int, config: WaveConfig) -> int:
    """How many of a head's remaining clusters are estimated; the paper drops the rest."""
    remaining = clusters - retrieved
    if config.scheme == "paper":
        return min(round(PAPER_ESTIMATED * clusters), remaining)
    return remaining


def initial_centroids(tokens: int, config: WaveConfig) -> int:
    """Centroids that k-means starts with for a segment of so many tokens."""
    return max(1, -(-tokens // config.cluster_tokens))


def outliers(tokens: int, config: WaveConfig) -> int:
    """Tokens of a segment that become clusters of their own."""
    return math.floor(config.outlier_fraction * tokens) if config.scheme == "wave" else 0
