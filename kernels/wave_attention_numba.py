"""`wave_attention` compiled for CPUs: five passes, all in place, nothing allocated per step.

The reference says what is computed. Here every segment is read where it lies, through a table of
addresses; K and V rows are never copied, and value rows are read only where a weight counts.
Compiled code is kept in the user's cache directory, so only the very first step ever pays for it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .jit_numba import jit
from .segment import SegmentTable, Totals
from .wave_attend_numba import attend, merge_parts
from .wave_attention import BUCKETS, NEGLIGIBLE, Selection, StepAnswer
from .wave_score_numba import choose, find, score_first, score_found
from .wave_words_numba import (
    BLOCK,
    BUCKET_MASS,
    BUCKET_NUMBER,
    BUCKET_TOKENS,
    BYTES,
    CLUSTER,
    COARSE_MASS,
    COARSE_RANK,
    COARSE_SIZE,
    COARSE_ZONE,
    EXACT,
    FINE_MASS,
    FOUND,
    KV_HEADS,
    LEAST,
    LOGS,
    LSE_EXACT,
    NORMS,
    OUT,
    PART_AT,
    PART_BYTES,
    PART_EXACT,
    PART_MASS,
    PART_ROWS,
    PART_SCORES,
    PART_SUM,
    PART_TOP,
    PARTS,
    PIECES,
    RANK,
    RULES,
    SEGMENT,
    SEGMENTS,
    SINGLE_MASS,
    SIZE,
    STEADY_LSE,
    STEADY_OUT,
    TABLE,
    TILE,
    TOKENS,
    WORDS,
    ZONE,
    Q,
    Z,
)


@jit()
def _score_first(w, kind, stored, start, stop, stride):
    for task in range(start, stop, stride):
        score_first(w, kind, task)


@jit()
def _find(w, kind, stored, start, stop, stride):
    for h in range(start, stop, stride):
        find(w, h)


@jit()
def _score_found(w, kind, stored, start, stop, stride):
    for task in range(start, stop, stride):
        score_found(w, kind, task)


@jit()
def _choose(w, kind, stored, start, stop, stride):
    for h in range(start, stop, stride):
        choose(w, h)


@jit()
def _attend(w, kind, stored, start, stop, stride):
    for task in range(start, stop, stride):
        attend(w, kind, stored, task)


PASSES = (_score_first, _find, _score_found, _choose, _attend, merge_parts)
"""Each does tasks start, start + stride ... before stop; the first and the third and fifth have
SEGMENTS and PARTS tasks per KV head, the others one."""


def _run(work: _Work, kind: NDArray[Any], stored: NDArray[Any], threads: int) -> None:
    """All passes on so many threads; heads go to threads whole where they come out even."""
    words = work.words
    kv_heads, parts = int(words[KV_HEADS]), int(words[PARTS])
    tasks = [n * kv_heads for n in (int(words[SEGMENTS]), 1, parts, 1, parts, 1)]

    def member(number: int, passes: slice, *, even: bool) -> None:
        for function, total in zip(PASSES[passes], tasks[passes], strict=True):
            if even:
                share = total // threads
                function(words, kind, stored, number * share, (number + 1) * share, 1)
            else:
                function(words, kind, stored, number, total, threads)

    if threads == 1:
        member(0, slice(None), even=True)
    elif kv_heads % threads == 0:
        _together(threads, lambda number: member(number, slice(None), even=True))
    else:
        for at in range(len(PASSES)):
            _together(threads, lambda number, at=at: member(number, slice(at, at + 1), even=False))


@functools.cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="wave-attention")


def _together(threads: int, member: Callable[[int], None]) -> None:
    """member(0) here and member(1 ...) on other threads, at the same time."""
    others = [_helpers(threads).submit(member, number) for number in range(1, threads)]
    member(0)
    for other in others:
        other.result()


KINDS = {
    torch.int8: np.empty(0, np.int8),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
    torch.float32: np.empty(0, np.float32),
}
"""What a stored element looks like to the compiled code."""


class _Work:
    """The words and arrays of steps of one shape; arrays grow, by doubling, with the context."""

    def __init__(self) -> None:
        self.words = np.zeros(WORDS, np.int64)
        self.clusters = self.longest = 0
        """What there is room for."""
        self._held: dict[int, NDArray[Any]] = {}

    def put(self, name: int, array: NDArray[Any]) -> None:
        """Lets the words at `name` describe a C-contiguous array of one or two dimensions."""
        rows, columns = array.shape if array.ndim == 2 else (1, array.shape[0])
        self.words[name : name + 3] = array.ctypes.data, rows, columns
        self._held[name] = array

    def __getitem__(self, name: int) -> NDArray[Any]:
        return self._held[name]


class _Works(threading.local):
    """Per thread, by shape."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[int, ...], _Work] = {}

    def of(self, *shape: int) -> _Work:
        return self._by_shape.setdefault(shape, _Work())


_works = _Works()


def wave_attention_numba(
    q: Tensor,
    steady: tuple[Tensor, Tensor],
    segments: SegmentTable,
    selection: Selection,
    *,
    scale: float,
) -> StepAnswer:
    """See `Kernel`. The answer's tensors are valid until this thread's next step."""
    (heads, dim), first = q.shape, segments[0]
    kv_heads = first.k.shape[0]
    threads = torch.get_num_threads()
    parts = max(1, PIECES * threads // kv_heads)
    work = _works.of(heads, kv_heads, dim, parts)
    scaled = (q.float() * scale).contiguous()
    work.put(Q, scaled.numpy())
    work.put(NORMS, scaled.square().sum(dim=1).numpy())
    work.put(STEADY_OUT, steady[0].float().contiguous().numpy())
    work.put(STEADY_LSE, steady[1].contiguous().numpy())
    work.put(TABLE, segments.rows.numpy())
    totals = segments.totals
    if totals.clusters > work.clusters or totals.longest > work.longest:
        _reserve(work, totals, heads, kv_heads, dim, kv_heads * parts)
    work.words[: LEAST + 1] = (
        kv_heads,
        heads // kv_heads,
        dim,
        len(segments),
        parts,
        totals.groups,
        totals.singles,
        first.fine.centroids.dtype == torch.int8,
        selection.descend < 1,
        selection.whole,
        selection.second_order,
        selection.floor,
        selection.least,
    )
    work[RULES][0] = (
        selection.descend,
        selection.sure,
        selection.tokens,
        selection.sharp_tokens,
        selection.clusters,
        selection.epsilon,
        selection.estimated,
        NEGLIGIBLE,
        selection.least_groups,
        min(selection.most, 1 << 62),
    )
    _run(work, KINDS[first.fine.centroids.dtype], KINDS[first.k.dtype], threads)
    return StepAnswer(
        out=torch.from_numpy(work[OUT]),
        lse_exact=torch.from_numpy(work[LSE_EXACT][0]),
        mass_exact=torch.from_numpy(work[EXACT][0]),
        retrieved_tokens=torch.from_numpy(work[TOKENS][0]),
        bytes=int(work[BYTES].sum()),
    )


def _reserve(work: _Work, totals: Totals, heads: int, kv_heads: int, dim: int, tasks: int) -> None:
    """Scratch for twice this many clusters."""
    group, clusters = heads // kv_heads, 2 * totals.clusters
    work.clusters, work.longest = clusters, 2 * totals.longest
    with np.errstate(divide="ignore"):
        logs = np.log(np.arange(work.longest + 1, dtype=np.float64))
    work.put(LOGS, logs.astype(np.float32)[None])
    for name, dtype, rows, columns in (
        (COARSE_MASS, np.float32, heads, clusters),
        (COARSE_RANK, np.float32, kv_heads, clusters),
        (COARSE_SIZE, np.int32, kv_heads, clusters),
        (COARSE_ZONE, np.int32, kv_heads, clusters),
        (SINGLE_MASS, np.float32, heads, clusters),
        (FINE_MASS, np.float32, heads, clusters),
        (RANK, np.float32, kv_heads, clusters),
        (SIZE, np.int32, kv_heads, clusters),
        (ZONE, np.int32, kv_heads, clusters),
        (SEGMENT, np.int32, kv_heads, clusters),
        (CLUSTER, np.int32, kv_heads, clusters),
        (RULES, np.float64, 1, 10),
        (FOUND, np.int64, kv_heads, 5),
        (Z, np.float32, kv_heads, group),
        (BUCKET_TOKENS, np.int64, kv_heads, BUCKETS),
        (BUCKET_NUMBER, np.int64, kv_heads, BUCKETS),
        (BUCKET_MASS, np.float64, kv_heads, BUCKETS),
        (PART_TOP, np.float32, tasks, group),
        (PART_MASS, np.float32, tasks, group),
        (PART_EXACT, np.float32, tasks, group),
        (PART_SUM, np.float32, tasks * group, dim),
        (PART_SCORES, np.float32, tasks * group, TILE),
        (PART_ROWS, np.float32, tasks * BLOCK, dim),
        (PART_BYTES, np.int64, 1, tasks),
        (PART_AT, np.int64, 4 * tasks, TILE),
        (OUT, np.float32, heads, dim),
        (EXACT, np.float32, 1, heads),
        (LSE_EXACT, np.float32, 1, heads),
        (TOKENS, np.int64, 1, kv_heads),
        (BYTES, np.int64, 1, kv_heads),
    ):
        work.put(name, np.zeros((rows, columns), dtype))
