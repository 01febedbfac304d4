"""`wave_attention` compiled for CPUs: six passes, all in place, little allocated per step.

The reference says what is computed. Here every segment is read where it lies, through a table of
addresses; K and V rows are never copied, and value rows are read only where a weight counts. Where
blocks have to be fetched, that is done between the fourth pass and the fifth.
Compiled code is kept in the user's cache directory, so only the very first step ever pays for it.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import carray
from numpy.typing import NDArray
from torch import Tensor

from .gather import Fetch
from .jit_numba import KINDS, add_at, jit, pointer
from .segment import SegmentTable, Totals
from .team import Task, give_way, together_compiled
from .team_numba import load_at, wait
from .wave_attend_numba import attend, attend_steady
from .wave_attention import BUCKETS, NEGLIGIBLE_SUMS, NEGLIGIBLE_VALUES, Selection, StepAnswer
from .wave_parts_numba import merge_parts
from .wave_score_numba import choose, find, prepare, score_first, score_found
from .wave_words_numba import (
    BEGIN,
    BUCKET_MASS,
    BUCKET_NUMBER,
    BUCKET_TOKENS,
    BY_HEAD,
    BYTES,
    CLUSTER,
    COARSE_MASS,
    COARSE_RANK,
    COARSE_SHARE,
    COARSE_SIZE,
    COARSE_SPREAD,
    COARSE_TOP,
    COARSE_ZONE,
    END,
    EXACT,
    FAILED,
    FINE_LOGIT,
    FINE_MASS,
    FINE_SHARE,
    FINE_TOP,
    FOUND,
    GIVE_WAY,
    KV_HEADS,
    LOGS,
    LSE,
    LSE_EXACT,
    NONE,
    NORMS,
    ONE,
    OUT,
    PART_AT,
    PART_BYTES,
    PART_CENTRE,
    PART_EXACT,
    PART_LINE,
    PART_MASS,
    PART_ROWS,
    PART_SCORES,
    PART_SHARED,
    PART_SUM,
    PART_TOP,
    PARTS,
    PIECES,
    PLACE,
    PROGRESS,
    Q_STEP,
    Q_TURNED,
    Q_WHOLE,
    RANK,
    RETRIEVED,
    RULES,
    SEGMENT,
    SEGMENTS,
    SINGLE_MASS,
    SIZE,
    STEADY_LSE,
    TABLE,
    TILE,
    TOKENS,
    WORDS,
    ZONE,
    Q,
    Z,
)

FIRST, FIND, SCORE_FOUND, CHOOSE, ATTEND, MERGE = range(6)
"""The passes. From ATTEND on it is known what is retrieved."""


@jit()
def _first(w, kind, kept, task):
    """Pass 1: a segment's groups and singles, or a part of the steady zone."""
    each = w[SEGMENTS] + w[PARTS]
    h, number = task // each, task % each
    if number < w[SEGMENTS]:
        score_first(w, kind, h * w[SEGMENTS] + number)
    else:
        attend_steady(w, kept, h * w[PARTS] + number - w[SEGMENTS])


@jit()
def _do(w, kind, stored, kept, number, task):
    """A task of a pass."""
    if number == FIRST:
        _first(w, kind, kept, task)
    elif number == FIND:
        find(w, task)
    elif number == SCORE_FOUND:
        score_found(w, kind, task)
    elif number == CHOOSE:
        choose(w, task)
    elif number == ATTEND:
        attend(w, kind, stored, task)
    else:
        merge_parts(w, kind, task)


@jit()
def _tasks(w, number):
    """How many a pass has."""
    if number == FIRST:
        return w[KV_HEADS] * (w[SEGMENTS] + w[PARTS])
    if number in (SCORE_FOUND, ATTEND):
        return w[KV_HEADS] * w[PARTS]
    return w[KV_HEADS]


@jit()
def _by_pass(w, kind, stored, kept):
    """Takes tasks of passes w[BEGIN] ... w[END] - 1, of each when that before it is done."""
    taken, done = w[PROGRESS], w[PROGRESS] + 8
    number, before, task = w[BEGIN], NONE, add_at(taken, ONE)
    while number < w[END]:
        count = _tasks(w, number)
        if task >= before + count:
            number, before = number + 1, before + count
            continue
        while load_at(done) < before:
            wait(1, w[GIVE_WAY])
        try:
            _do(w, kind, stored, kept, number, task - before)
        except Exception:  # Others wait for what is done.
            w[FAILED] = 1
        add_at(done, ONE)
        task = add_at(taken, ONE)


@jit()
def _by_head(w, kind, stored, kept):
    """Takes heads through all passes until their clusters are chosen, then parts of any."""
    heads, parts, each = w[KV_HEADS], w[PARTS], w[SEGMENTS] + w[PARTS]
    chosen_at = w[PROGRESS] + 16
    taken, done = chosen_at + 8 * heads, chosen_at + 16 * heads
    last, h = NONE, add_at(w[PROGRESS], ONE)
    while h < heads:
        for task in range(h * each, (h + 1) * each):
            _first(w, kind, kept, task)
        find(w, h)
        for task in range(h * parts, (h + 1) * parts):
            score_found(w, kind, task)
        choose(w, h)
        add_at(chosen_at + 8 * h, ONE)
        last, h = h, add_at(w[PROGRESS], ONE)
    for number in range(last, last + heads):
        h = number % heads
        if load_at(chosen_at + 8 * h) == 0:
            continue
        part = add_at(taken + 8 * h, ONE)
        while part < parts:
            attend(w, kind, stored, h * parts + part)
            if add_at(done + 8 * h, ONE) == parts - 1:
                merge_parts(w, kind, h)
            part = add_at(taken + 8 * h, ONE)


@functools.cache
def _step_of(kind: torch.dtype, stored: torch.dtype, kept: torch.dtype) -> Task:
    """A step's passes for centroids, stored keys and steady ones of these dtypes."""
    centroids, rows, steady = KINDS[kind], KINDS[stored], KINDS[kept]

    def step(words: int, member: int) -> None:
        w = carray(pointer(words), WORDS, np.int64)
        if w[BY_HEAD]:
            try:
                _by_head(w, centroids, rows, steady)
            except Exception:
                w[FAILED] = 1
        else:
            _by_pass(w, centroids, rows, steady)

    # Each is kept in files of its own.
    step.__qualname__ = "_step_" + "_".join(str(dtype)[6:] for dtype in (kind, stored, kept))
    return step


def _run(work: _Work, step: Task, threads: int, fetch: Fetch | None) -> None:
    """All passes on so many threads; heads go to threads whole where they come out even."""

    def run(first: int, stop: int) -> None:
        work.words[BEGIN : END + 1] = first, stop
        together_compiled(threads, step, work.address)
        if work.words[FAILED]:
            raise MemoryError("a step of wave attention has no room for its lists")

    work.words[FAILED] = 0
    work.words[BY_HEAD] = fetch is None and int(work.words[KV_HEADS]) % threads == 0
    if fetch is None:
        run(FIRST, MERGE + 1)
        return
    run(FIRST, ATTEND)
    retrieved = _retrieved(work)
    with fetch(*retrieved.clusters) as addresses:
        work[PLACE][retrieved.places] = addresses
        work[PROGRESS][:] = 0
        run(ATTEND, MERGE + 1)


@dataclass(frozen=True, slots=True)
class _Retrieved:
    """What a step has chosen to retrieve."""

    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    """KV heads, and numbers among the candidates."""
    clusters: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """Segments, KV heads, numbers in the segment."""


def _retrieved(work: _Work) -> _Retrieved:
    most = int(work[FOUND][:, 1].max())
    taken = work[ZONE][:, :most] == RETRIEVED
    # What is beyond a head's candidates is left over from earlier steps.
    taken &= np.arange(most) < work[FOUND][:, 1:2]
    heads, numbers = np.nonzero(taken)
    segments, clusters = (
        work[name][heads, numbers].astype(np.int64) for name in (SEGMENT, CLUSTER)
    )
    return _Retrieved((heads, numbers), (segments, heads, clusters))


CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Of the queries' dtypes."""


class _Work:
    """The words and arrays of steps of one shape; arrays grow, by doubling, with the context."""

    def __init__(self) -> None:
        self.words = np.zeros(WORDS, np.int64)
        self.address = self.words.ctypes.data
        self.words[GIVE_WAY] = give_way()
        self.clusters = self.longest = 0
        """What there is room for."""
        self.rules_known: tuple[Selection, float, float, float] | None = None
        self.answer: tuple[Tensor, ...] = ()
        """The arrays that a step's answer is read from."""
        self._held: dict[int, NDArray[Any]] = {}

    def put(self, name: int, array: NDArray[Any]) -> None:
        """Lets the words at `name` describe a C-contiguous array of one or two dimensions."""
        rows, columns = array.shape if array.ndim == 2 else (1, array.shape[0])
        self.words[name : name + 3] = array.ctypes.data, rows, columns
        self._held[name] = array

    def rule(self, selection: Selection, scale: float) -> None:
        """Lets RULES say what to read; nothing is done when they say it already."""
        rule = (selection, scale, NEGLIGIBLE_SUMS, NEGLIGIBLE_VALUES)
        if rule == self.rules_known:
            return
        self.rules_known = rule
        self[RULES][0] = (
            selection.descend,
            selection.sure,
            selection.tokens,
            selection.sharp_tokens,
            selection.clusters,
            selection.epsilon,
            selection.estimated,
            NEGLIGIBLE_SUMS,
            selection.least_groups,
            min(selection.most, 1 << 62),
            scale,
            selection.sharp_descend,
            NEGLIGIBLE_VALUES,
            selection.frozen,
            selection.calm,
            selection.flat,
            selection.flat_descend,
            selection.flat_tokens,
        )

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
    fetch: Fetch | None = None,
) -> StepAnswer:
    """See `Kernel`. The answer's tensors are valid until this thread's next step."""
    (heads, dim), first, totals = q.shape, segments[0], segments.totals
    kv_heads = first.heads
    threads = torch.get_num_threads()
    parts = max(1, PIECES * threads // kv_heads)
    work = _works.of(heads, kv_heads, dim, parts)
    if totals.clusters > work.clusters or totals.longest > work.longest:
        _reserve(work, totals, heads, kv_heads, dim, kv_heads * parts)
    work.rule(selection, scale)
    q = (q if q.dtype in CODES else q.float()).contiguous()
    k, v = steady
    if k.stride()[1:] != (dim, 1) or k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    work.words[KV_HEADS : TABLE + 3] = (
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
        q.data_ptr(),
        CODES[q.dtype],
        k.shape[1],
        k.stride(0) * k.element_size(),
        k.data_ptr(),
        v.data_ptr(),
        segments.rows.data_ptr(),
        len(segments),
        SegmentTable.COLUMNS,
    )
    elements = first.fine.centroids.dtype, first.codec.element, k.dtype
    work.words[PLACE + ONE] = 0 if fetch is None else kv_heads
    prepare(work.words, KINDS[elements[1]])
    _run(work, _step_of(*elements), threads, fetch)
    return StepAnswer(*work.answer, bytes=sum(work[BYTES][0].tolist()))


def _reserve(work: _Work, totals: Totals, heads: int, kv_heads: int, dim: int, tasks: int) -> None:
    """Scratch for twice this many clusters."""
    group, clusters = heads // kv_heads, 2 * totals.clusters
    work.rules_known = None
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
        (COARSE_SHARE, np.float32, heads, clusters),
        (COARSE_TOP, np.float32, kv_heads, group),
        (COARSE_SPREAD, np.float32, kv_heads, clusters),
        (FINE_SHARE, np.float32, heads, clusters),
        (FINE_TOP, np.float32, kv_heads, group),
        (FINE_LOGIT, np.float32, heads, clusters),
        (RANK, np.float32, kv_heads, clusters),
        (SIZE, np.int32, kv_heads, clusters),
        (ZONE, np.int32, kv_heads, clusters),
        (SEGMENT, np.int32, kv_heads, clusters),
        (CLUSTER, np.int32, kv_heads, clusters),
        (PLACE, np.int64, kv_heads, clusters),
        (Q, np.float32, heads, dim),
        (Q_TURNED, np.float32, heads, dim),
        (Q_WHOLE, np.int16, heads, dim),
        (Q_STEP, np.float32, 1, heads),
        (NORMS, np.float32, 1, heads),
        (STEADY_LSE, np.float32, 1, heads),
        (RULES, np.float64, 1, 18),
        (FOUND, np.int64, kv_heads, 7),
        (Z, np.float32, kv_heads, group),
        (BUCKET_TOKENS, np.int64, kv_heads, BUCKETS),
        (BUCKET_NUMBER, np.int64, kv_heads, BUCKETS),
        (BUCKET_MASS, np.float64, kv_heads, BUCKETS),
        (PART_TOP, np.float32, tasks, group),
        (PART_MASS, np.float32, tasks, group),
        (PART_EXACT, np.float32, tasks, group),
        (PART_SUM, np.float32, tasks * group, dim),
        (PART_SCORES, np.float32, tasks * group, TILE),
        (PART_ROWS, np.float32, tasks * TILE, dim),
        (PART_BYTES, np.int64, 1, tasks),
        (PART_AT, np.int64, 10 * tasks, 2 * TILE),
        (PART_CENTRE, np.float32, 2 * tasks * group, 2 * TILE),
        (PART_LINE, np.float32, 2 * tasks, TILE),
        (PART_SHARED, np.float32, tasks, group),
        (OUT, np.float32, heads, dim),
        (EXACT, np.float32, 1, heads),
        (LSE_EXACT, np.float32, 1, heads),
        (LSE, np.float32, 1, heads),
        (TOKENS, np.int64, 1, kv_heads),
        (BYTES, np.int64, 1, kv_heads),
        (PROGRESS, np.int64, 1, 2 + 3 * kv_heads),
    ):
        work.put(name, np.zeros((rows, columns), dtype))
    outputs = work[OUT], work[LSE][0], work[LSE_EXACT][0], work[EXACT][0], work[TOKENS][0]
    work.answer = tuple(torch.from_numpy(array) for array in outputs)
