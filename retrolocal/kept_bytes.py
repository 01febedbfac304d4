"""Bytes that a text takes in the library, known before it is read.

The zones of the layers are walked through as a reading goes: a file for each piece, and a tail for
what follows the last one. Of a text that is too short to be clustered they have what it grew by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .caches import is_clustered
from .config import SessionConfig
from .head import Head
from .ingest import Document
from .ingest.token_map import SPAN
from .kernels.codecs import Codec
from .library.tensor_file import CHUNK, PAGE
from .memory import INDEX_BYTES
from .models.config import ModelConfig
from .wave.zones import (
    groups,
    initial_centroids,
    outliers,
    pending,
    piece_end,
    segment_end,
)

TOKEN_ID_BYTES = 4
MANIFEST_BYTES = 3000
"""Of an entry's manifest, which names what it was read with; and of each segment in it ..."""
LISTED_BYTES = 170
HEADER_BYTES = 400
"""Of a file of tensors; and for each of them, with what moves the next one into place ..."""
TENSOR_BYTES = 180
CHECKSUM_BYTES = 32
"""... and for each chunk."""


def kept_bytes(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
    head: Head,
    *,
    known: int = 0,
) -> int:
    """What is still to be written of a head of which the library has the first `known` tokens."""
    tokens, wave = len(head.ids), config.wave
    if known >= tokens:
        return 0
    clusters = is_clustered(model, config, dtype, device, tokens)
    layers = _Layers(model, config, dtype, clusters)
    total, pieces, begun, clustered_end = 0, 0, 0, wave.sink_tokens
    end = piece_end(0, wave, model.chunk_tokens)
    while end <= tokens:
        lengths = [end - wave.window_tokens - clustered_end] if clusters else []
        clustered_end, pieces = clustered_end + sum(lengths), pieces + 1
        if end > known:
            total += layers.file_bytes(begun, end, lengths, clustered_end)
        begun, end = end, piece_end(end, wave, model.chunk_tokens)
    shorter: list[int] = []
    while clusters and pending(tokens, clustered_end, wave) > wave.growth_tokens:
        stop = segment_end(clustered_end, wave, model.chunk_tokens)
        shorter.append(min(stop, tokens - wave.window_tokens) - clustered_end)
        clustered_end += shorter[-1]
    total += layers.file_bytes(begun, tokens, shorter, clustered_end)
    manifest = MANIFEST_BYTES + LISTED_BYTES * pieces
    texts = sum(map(_document_bytes, head.documents))
    return total + _on_pages(manifest) + texts + _on_pages(SPAN.itemsize * len(head.places))


@dataclass(frozen=True, slots=True)
class _Layers:
    """The tensors that the layers of a model are kept as: their sizes, in bytes."""

    model: ModelConfig
    config: SessionConfig
    dtype: torch.dtype
    clustered: bool

    def file_bytes(self, begun: int, held: int, segments: Sequence[int], clustered_end: int) -> int:
        """Of the file of the last of `held` tokens, those from `begun` on, with segments of so many
        tokens."""
        tokens = held - begun
        sizes = [TOKEN_ID_BYTES * tokens]
        row = self.model.kv_heads * self.model.head_dim * self.dtype.itemsize
        for layer in self.model.layers:
            rest = held - (clustered_end - self.config.wave.sink_tokens)
            if layer.window is None:
                for length in segments:
                    sizes.extend(self._segment(length))
            else:
                rest = min(held, layer.window - 1)
            # What keeps every token is written once.
            sizes += [(tokens if rest == held and not self.clustered else rest) * row] * 2
        data = sum(size + -size % (PAGE if size >= 16 * PAGE else 64) for size in sizes)
        header = HEADER_BYTES + TENSOR_BYTES * len(sizes) + CHECKSUM_BYTES * (data // CHUNK + 1)
        return _on_pages(header) + _on_pages(data)

    def _segment(self, tokens: int) -> Iterator[int]:
        """Of a segment of one layer: `kernels.segment.segment_tensors` and its permutation."""
        heads, dim, wave = self.model.kv_heads, self.model.head_dim, self.config.wave
        grouped = initial_centroids(tokens, wave)
        clusters = grouped + outliers(tokens, wave)
        for rows in (clusters, groups(grouped, wave)):
            yield from [heads * rows * dim * INDEX_BYTES[wave.index_type]] * 2
            yield heads * rows * 4 * (wave.index_type == "int8")
            yield heads * rows * 2
            yield heads * (rows + 1) * 4
        yield heads * dim * 4
        yield 16
        yield heads * tokens * Codec.of(wave.store_type, self.dtype).token_bytes(dim)
        yield heads * tokens * 4


def _document_bytes(document: Document) -> int:
    text = len(document.text.encode("utf-8", "surrogatepass"))
    return _on_pages(text) + _on_pages(len(json.dumps(document.to_json())))


def _on_pages(count: int) -> int:
    """A file takes whole pages of a disk."""
    return count + -count % PAGE
