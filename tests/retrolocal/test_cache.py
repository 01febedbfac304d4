"""Dense and windowed caches against float64, over any mixture of chunks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrolocal.cache import DenseCache, RingCache


def exact(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention of the last Tq tokens in float64, optionally within a window."""
    total, asking = k.shape[1], q.shape[1]
    k, v = (t.double().repeat_interleave(q.shape[0] // t.shape[0], dim=0) for t in (k, v))
    scores = q.double() @ k.transpose(1, 2) * q.shape[2] ** -0.5
    distance = torch.arange(total - asking, total)[:, None] - torch.arange(total)
    hidden = (distance < 0) | (distance >= (window or total))
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v


@settings(deadline=None, max_examples=60)
@given(
    chunks=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    heads=st.sampled_from([(1, 1), (4, 2), (7, 1)]),
    dim=st.sampled_from([3, 16, 64]),
    window=st.none() | st.integers(1, 50),
    data=st.data(),
)
def test_attend(
    chunks: list[int],
    heads: tuple[int, int],
    dim: int,
    window: int | None,
    data: st.DataObject,
) -> None:
    generator = torch.Generator().manual_seed(sum(chunks))
    total = sum(chunks)
    q, k, v = (torch.randn(h, total, dim, generator=generator) for h in (*heads, heads[1]))
    cache = DenseCache() if window is None else RingCache(window)
    start = 0
    for count in chunks:
        stop = start + count
        asking = data.draw(st.integers(0, count))
        new = slice(start, stop)
        queries = q[:, stop - asking : stop]
        out = cache.attend(queries, k[:, new], v[:, new], torch.arange(start, stop))
        expected = exact(queries, k[:, :stop], v[:, :stop], window)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
        start = stop
    assert cache.tokens == total


@settings(deadline=None, max_examples=30)
@given(before=st.integers(1, 30), after=st.integers(1, 30), window=st.none() | st.integers(1, 20))
def test_restore_forgets_what_came_after(before: int, after: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(before * 31 + after)
    rows = [torch.randn(2, before + after, 8, generator=generator) for _ in range(3)]
    cache = DenseCache() if window is None else RingCache(window)

    def run(start: int, stop: int) -> Tensor:
        q, k, v = (t[:, start:stop] for t in rows)
        return cache.attend(q, k, v, torch.arange(start, stop))

    run(0, before)
    snapshot = cache.snapshot()
    first = run(before, before + after)
    cache.restore(snapshot)  # type: ignore[arg-type]
    assert cache.tokens == before
    assert torch.equal(run(before, before + after), first)


def test_a_window_holds_no_more_than_itself() -> None:
    cache = RingCache(16)
    rows = torch.randn(1, 1000, 4)
    cache.attend(rows, rows, rows, torch.arange(1000))
    assert cache.statistics().bytes == 2 * 15 * 4 * 4
