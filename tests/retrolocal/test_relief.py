"""Where memory runs out, at whatever allocation, work goes on with less and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from retrolocal.cache import DenseCache, RingCache
from retrolocal.config import WaveConfig
from retrolocal.device_graph import GraphedModel
from retrolocal.errors import MemoryLimitError
from retrolocal.generate import prefill
from retrolocal.relief import LEAST_CHUNK, SMALLER_CACHE, Relief
from retrolocal.wave import device_cache
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.device_cache import DeviceBlockCache
from retrolocal.wave.store import PinnedStore

CONFIG = WaveConfig(
    segment_tokens=512, cluster_tokens=16, iterations=1, window_tokens=32, store_type="int8"
)
TOKENS = 2048


class FullAt(TorchDispatchMode):
    """The n-th operation that makes a tensor, counted from 1, finds the memory full; 0: none."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number, self.count = number, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(made, Tensor) and not func._schema.is_mutable:
            self.count += 1
            if self.count == self._number:
                raise torch.OutOfMemoryError("full")
        return made


class Layers:
    """One layer of each kind: a query, a key and a value per token id, two KV heads."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._rows = torch.randn(3, 2, 256, 16, generator=generator)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Any,
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        q, k, v = self._rows[:, :, token_ids]
        found = [cache.attend(q, k, v, positions) for cache in caches]
        return torch.stack(found).sum(0).transpose(0, 1).flatten(1)[len(token_ids) - wanted :]


def read(number: int, lines: list[str]) -> tuple[Tensor, list[Any], int]:
    """Logits, caches and operations of a prompt whose reading finds the memory full once."""
    caches = [WaveCache(CONFIG, PinnedStore(pinned=False)), RingCache(40), DenseCache()]
    relief = Relief(1024, lines.append)
    model, ids = Layers(), torch.arange(TOKENS) * 37 % 250
    with FullAt(number) as full:
        reading = prefill(model, caches, ids, 0, chunk_tokens=1024, relief=relief)
        while True:
            try:
                next(reading)
            except StopIteration as finished:
                return finished.value, caches, full.count


def test_a_prompt_is_read_on_wherever_memory_was_full() -> None:
    logits, caches, operations = read(0, [])
    # As many places as there are distinct kinds of them, and some more.
    for number in range(1, operations + 1, max(1, operations // 60)):
        lines: list[str] = []
        found, others, _ = read(number, lines)
        assert lines == ["the GPU's memory is full: the text is read 512 tokens at a time"]
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
        for cache, other in zip(caches, others, strict=True):
            assert other.tokens == TOKENS
            saved = [*cache.saved_segments(), cache.saved_rest()]
            for one, two in zip(saved, [*other.saved_segments(), other.saved_rest()], strict=True):
                assert all(torch.equal(one[name], two[name]) for name in one), number


def test_where_nothing_helps_the_error_stands() -> None:
    lines: list[str] = []
    relief, held = Relief(tell=lines.append), DenseCache()

    def model(ids: Tensor, *rest: Any) -> Tensor:
        raise torch.OutOfMemoryError("full")

    ids = torch.zeros(2000, dtype=torch.int64)
    with pytest.raises(torch.OutOfMemoryError):
        list(prefill(model, [held], ids, 0, chunk_tokens=2000, relief=relief))
    assert [int(line.split()[-5]) for line in lines if "," not in line] == [500]
    assert len(lines) == 2
    assert LEAST_CHUNK <= relief.chunk_tokens < 2 * LEAST_CHUNK


def test_block_caches_shrink_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a capture finds the memory full; the second time there is little left of them."""
    monkeypatch.setattr(device_cache, "LEAST_BYTES", 1)
    cache = WaveCache(CONFIG, PinnedStore(pinned=False), block_cache=1 << 18)
    k, v = torch.randn(2, 2, 1200, 16)
    cache.attend(k[:, :0], k, v, torch.arange(1200))
    blocks = cache._blocks
    assert isinstance(blocks, DeviceBlockCache)
    blocks.before_step()
    sizes, lines = [blocks.bytes], []

    class Captured(RingCache):
        def prepare_step(self) -> bool:
            return cache._blocks is not None and cache._blocks.before_step() is None

        def shrink_block_cache(self) -> int:
            return cache.shrink_block_cache()

        def step_places(self) -> tuple[int, ...]:
            return ()

        def capturing(self) -> Any:
            sizes.append(blocks.bytes)
            if len(sizes) < 4:
                raise torch.OutOfMemoryError("full")
            return super().capturing()

    ring = Captured(8)
    ring._ring.fill((k[:, :3], v[:, :3]), 3)
    told = Relief(tell=lines.append)
    graphed = GraphedModel(
        lambda *given: torch.ones(1, 4), capture=lambda run: lambda: run(), relief=told
    )
    one = torch.zeros(1, dtype=torch.int64)
    assert graphed(one, one, [ring], 1).tolist() == [[1.0] * 4]
    assert lines == [SMALLER_CACHE]
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3] > 0
    assert sizes[3] <= sizes[0] // 4
    assert ring.tokens == 1


def test_a_step_without_block_caches_fails_as_it_did() -> None:
    class Captured(RingCache):
        def prepare_step(self) -> bool:
            raise torch.OutOfMemoryError("full")

    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(MemoryLimitError, match="the GPU's memory is full"):
        GraphedModel(lambda *given: one)(one, one, [Captured(8)], 1)
