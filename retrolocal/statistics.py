"""What a layer cache says about itself: plain numbers, summed over layers by `combine`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatistics:
    """One layer, or (from `combine`) all layers that keep the whole context."""

    kind: str
    """`dense`, `wave` or `window`."""
    tokens: int
    """Tokens of the context held."""
    steady_tokens: int
    """Tokens attended exactly at every step."""
    clusters: int
    """Clusters, summed over KV heads (and layers)."""
    bytes: int
    """Bytes of K and V held, in all tiers."""
    index_bytes: int = 0
    """Bytes of the wave index."""
    steps: int = 0
    """Decode steps since the last reset."""
    retrieved_tokens: float = 0.0
    """Mean number of clustered tokens attended exactly per step and KV head (and layer)."""
    bytes_per_step: float = 0.0
    """Mean bytes of index and clustered K and V read per step (summed over layers)."""
    mass_exact: float = 1.0
    """Mean share of the attention mass that was attended exactly."""
    mass_estimated: float = 0.0
    """Mean share of the attention mass that was estimated."""
    file_bytes: int = 0
    """Of `bytes`, those in a file behind a block cache."""
    block_cache_bytes: int = 0
    """Bytes of the block cache."""
    fetched: int = 0
    """Clusters asked for since the last reset that are not read in place ..."""
    hits: int = 0
    """... and those of them that were in the block cache."""
    slow_bytes: float = 0.0
    """Mean bytes read from the file per step (summed over layers), those read ahead included."""

    @property
    def hit_ratio(self) -> float | None:
        """Share of the fetched clusters that the block cache held; None when none was fetched."""
        return self.hits / self.fetched if self.fetched else None


def combine(layers: Iterable[CacheStatistics]) -> CacheStatistics:
    """Sums of clusters and bytes, means of the rest; sliding windows add their bytes only."""
    everything = list(layers)
    whole = [layer for layer in everything if layer.kind != "window"]
    if not whole:
        whole = everything
    count = len(whole)
    return CacheStatistics(
        kind=whole[0].kind,
        tokens=max(layer.tokens for layer in whole),
        steady_tokens=round(sum(layer.steady_tokens for layer in whole) / count),
        clusters=sum(layer.clusters for layer in whole),
        bytes=sum(layer.bytes for layer in everything),
        index_bytes=sum(layer.index_bytes for layer in whole),
        steps=max(layer.steps for layer in whole),
        retrieved_tokens=sum(layer.retrieved_tokens for layer in whole) / count,
        bytes_per_step=sum(layer.bytes_per_step for layer in whole),
        mass_exact=sum(layer.mass_exact for layer in whole) / count,
        mass_estimated=sum(layer.mass_estimated for layer in whole) / count,
        file_bytes=sum(layer.file_bytes for layer in whole),
        block_cache_bytes=sum(layer.block_cache_bytes for layer in whole),
        fetched=sum(layer.fetched for layer in whole),
        hits=sum(layer.hits for layer in whole),
        slow_bytes=sum(layer.slow_bytes for layer in whole),
    )
