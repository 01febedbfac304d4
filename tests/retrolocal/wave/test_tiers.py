"""A cache whose clusters lie in a file answers with the bits of one that has them in RAM."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.config import WaveConfig
from retrolocal.errors import DamagedError, StoreError
from retrolocal.wave.buffer.source import CHECKED, CheckedSource, FileSource, RamSource, Stored
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.lengths import Lengths
from retrolocal.wave.tiers import Tiers

Rows = tuple[Tensor, Tensor, Tensor]
SMALL = WaveConfig(
    segment_tokens=64, growth_tokens=20, window_tokens=8, cluster_tokens=8, iterations=2
)
CHUNKS = st.lists(st.just(1) | st.integers(1, 150), min_size=1, max_size=15)
WAVE_PREFILL = Lengths(prefill=lambda: 100)
STEPPED = Lengths(stepped=5)


def run(cache: WaveCache, rows: Rows, chunks: list[int], start: int = 0) -> list[Tensor]:
    out = []
    for count in chunks:
        q, k, v = (t[:, start : start + count] for t in rows)
        out.append(cache.attend(q, k, v, torch.arange(start, start + count)))
        start += count
    return out


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    chunks=CHUNKS,
    later=CHUNKS,
    store=st.sampled_from(["bf16", "int8", "int4"]),
    lengths=st.sampled_from([Lengths(), WAVE_PREFILL, STEPPED]),
    ram=st.sampled_from([0, 20_000]),
    cache_bytes=st.sampled_from([0, 3_000, 1 << 20]),
)
def test_a_file_changes_no_bit(
    structured: Callable[..., Rows],
    tmp_path: Path,
    chunks: list[int],
    later: list[int],
    store: Any,
    lengths: Lengths,
    ram: int,
    cache_bytes: int,
) -> None:
    """Chunks and steps, two layers that share one limit, going back, and what was read."""
    config = replace(SMALL, store_type=store)
    rows = [structured(seed, sum(chunks) + sum(later)) for seed in (1, 2)]
    tiers = Tiers(ram_bytes=ram, cache_bytes=cache_bytes, folder=tmp_path)
    plain = [WaveCache(config, lengths=lengths) for _ in rows]
    tiered = [WaveCache(config, tiers.store(), lengths=lengths) for _ in rows]
    for own, near, far in zip(rows, plain, tiered, strict=True):
        for cache in (near, far):
            cache.settle()
        assert same(run(near, own, chunks), run(far, own, chunks))
    marks = [(near.snapshot(), far.snapshot()) for near, far in zip(plain, tiered, strict=True)]
    for _ in range(2):
        for own, near, far, mark in zip(rows, plain, tiered, marks, strict=True):
            assert same(run(near, own, later, sum(chunks)), run(far, own, later, sum(chunks)))
            shares = near.read_from(), far.read_from()
            assert shares[0] is shares[1] is None or torch.equal(*shares)
            saved = near.saved_segments(), far.saved_segments()
            for a, b in zip(*saved, strict=True):
                assert all(torch.equal(a[name], b[name]) for name in a)
            for cache, at in zip((near, far), mark, strict=True):
                cache.restore(at)
    assert list(tmp_path.iterdir()) == []
    tiers.close()
    tiers.close()


def far_cache(tmp_path: Path, **limits: int) -> tuple[WaveCache, Tiers]:
    tiers = Tiers(**{"ram_bytes": 0, "cache_bytes": 1 << 20, **limits}, folder=tmp_path)
    return WaveCache(SMALL, tiers.store()), tiers


def test_what_is_counted(structured: Callable[..., Rows], tmp_path: Path) -> None:
    rows, (cache, tiers) = structured(3, 400), far_cache(tmp_path)
    run(cache, rows, [300])
    facts = cache.statistics()
    assert facts.file_bytes == cache._store.bytes > 0
    assert (facts.hit_ratio, facts.slow_bytes) == (None, 0)
    cache.reset_statistics()
    run(cache, rows, [1] * 10, 300)
    facts = cache.statistics()
    assert facts.fetched > 0
    assert facts.slow_bytes > 0
    assert 0 < facts.block_cache_bytes <= 1 << 20
    mark = cache.snapshot()
    run(cache, rows, [1], 310)
    cache.restore(mark)
    cache.reset_statistics()
    assert cache.statistics().fetched == 0
    run(cache, rows, [1], 310)
    # Slots are of sizes: where clusters of one size are many, not all find one.
    assert 0.9 < cache.statistics().hit_ratio <= 1.0
    tiers.close()
    near = WaveCache(SMALL, Tiers().store())
    run(near, rows, [300, 1])
    facts = near.statistics()
    assert (facts.file_bytes, facts.hit_ratio, facts.slow_bytes) == (0, None, 0)
    assert near._store.fetch is None


def test_ram_that_is_free_again_is_used_and_so_is_the_file(
    structured: Callable[..., Rows], tmp_path: Path
) -> None:
    """Going back and on for ever takes no more room than once."""
    rows, (cache, tiers) = structured(4, 400), far_cache(tmp_path, ram_bytes=20_000)
    run(cache, rows, [200])
    mark, near = cache.snapshot(), cache.statistics().bytes - cache.statistics().file_bytes
    ends = set()
    for _ in range(4):
        run(cache, rows, [150], 200)
        ends.add(tiers._spill._end)
        cache.restore(mark)
        assert cache.statistics().bytes - cache.statistics().file_bytes == near
    assert len(ends) == 1
    tiers.close()


def test_a_full_disk_is_one_line(
    structured: Callable[..., Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, (cache, tiers) = structured(5, 100), far_cache(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); free"):
        run(cache, rows, [100])
    tiers.close()


def kept(cache: WaveCache, folder: Path) -> list[FileSource]:
    """The blocks of a cache's segments in files."""
    paths = []
    for number, tensors in enumerate(cache.saved_segments()):
        paths.append(folder / f"{number}.blocks")
        paths[-1].write_bytes(tensors["blocks"].numpy().tobytes())
    return [FileSource(path) for path in paths]


@pytest.mark.parametrize("ram", [0, 1 << 30])
def test_a_saved_cache_is_read_from_its_own_files(
    structured: Callable[..., Rows], tmp_path: Path, ram: int
) -> None:
    """Nothing is written, whether they are mapped and fit or not."""
    rows, first = structured(6, 400), WaveCache(SMALL)
    run(first, rows, [300])
    files = kept(first, tmp_path)
    tiers = Tiers(ram_bytes=ram, cache_bytes=10_000, folder=tmp_path / "spill")
    second = WaveCache(SMALL, tiers.store())
    second.load(
        first.saved_segments(),
        first.saved_rest(),
        300,
        [Stored(lambda file=file: file) for file in files],  # type: ignore[misc]
    )
    assert same(run(second, rows, [1] * 9, 300), run(first, rows, [1] * 9, 300))
    assert (second.statistics().file_bytes > 0) == (ram == 0)
    assert not (tmp_path / "spill").exists()
    tiers.close()


def test_what_was_kept_elsewhere_is_not_held_twice(
    structured: Callable[..., Rows], tmp_path: Path
) -> None:
    rows, (cache, tiers) = structured(7, 400), far_cache(tmp_path)
    plain = WaveCache(SMALL)
    assert same(run(cache, rows, [200]), run(plain, rows, [200]))
    for number, file in enumerate(kept(cache, tmp_path)):
        cache.saved_to(number, Stored(lambda file=file: file))  # type: ignore[misc]
    end = tiers._spill._end
    assert same(run(cache, rows, [130, 1], 200), run(plain, rows, [130, 1], 200))
    assert tiers._spill._end == end
    tiers.close()


@pytest.mark.parametrize("near", [True, False])
def test_bytes_are_checked_before_they_are_used_and_once(near: bool, tmp_path: Path) -> None:
    content = torch.arange(3 * CHECKED + 5, dtype=torch.int64).to(torch.uint8)
    (tmp_path / "blocks").write_bytes(content.numpy().tobytes())
    seen: list[tuple[int, int]] = []

    def check(start: int, stop: int) -> None:
        seen.append((start, stop))
        if start <= 2 * CHECKED < stop:
            raise DamagedError("the third piece")

    inner = RamSource(content) if near else FileSource(tmp_path / "blocks")
    source, into = CheckedSource(inner, check), bytearray(10)
    source.read(CHECKED - 5, memoryview(into))
    assert bytes(into) == content[CHECKED - 5 : CHECKED + 5].numpy().tobytes()
    assert seen == [(0, CHECKED), (CHECKED, 2 * CHECKED)]
    source.read(7, memoryview(into))
    source.verify(3 * CHECKED, 5)
    assert seen[2:] == [(3 * CHECKED, 3 * CHECKED + 5)]
    for _ in range(2):
        with pytest.raises(DamagedError, match="third"):
            source.read(3 * CHECKED - 1, memoryview(into)[:1])
    assert not source.sure


@pytest.mark.parametrize("ram", [0, 1 << 30], ids=["file", "mapped"])
@pytest.mark.parametrize("how", ["step", "prompt"])
def test_damage_is_found_at_the_first_touch(
    structured: Callable[..., Rows], tmp_path: Path, ram: int, how: str
) -> None:
    """Loading touches nothing; a step or a prompt that reads a damaged piece says so."""
    rows, first = structured(8, 400), WaveCache(replace(SMALL, budget=1.0))
    run(first, rows, [300])
    files, asked = kept(first, tmp_path), []

    def check(start: int, stop: int) -> None:
        asked.append((start, stop))
        raise DamagedError("segment 0 is damaged")

    tiers = Tiers(ram_bytes=ram, cache_bytes=10_000, folder=tmp_path)
    second = WaveCache(replace(SMALL, budget=1.0), tiers.store())
    stored = [Stored(lambda file=file: file) for file in files]  # type: ignore[misc]
    stored[0] = replace(stored[0], check=check)
    second.load(first.saved_segments(), first.saved_rest(), 300, stored)
    assert asked == []
    with pytest.raises(DamagedError, match="segment 0 is damaged"):
        run(second, rows, [1 if how == "step" else 5], 300)
    assert asked != []
    tiers.close()
