"""`WaveCache`: the layer cache made of a steady zone, a wave index and a store.

Several new tokens at once (prefill) are answered exactly over everything held, or from a given
length on through the index; a single one (a decode step) by tripartite attention. Segments are
cut and clustered after the answer; while generating, in the background. This is the only module
that sees index and store together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from weakref import WeakSet

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.segment import Segment, nbytes, segment_of, segment_tensors
from ..statistics import CacheStatistics
from ..token_buffer import TokenBuffer
from .background import Job, Plan
from .beside import Beside
from .buffer.source import Stored
from .clustering import cluster_segment
from .device_cache import DeviceBlockCache
from .device_step import DeviceStep
from .index import WaveIndex
from .lengths import Lengths
from .points import Coming, WaveSnapshot
from .read_from import clustered_shares, dense_shares
from .reader import Extent, Reader, stored_rows
from .store import BlockStore, RamStore
from .zones import next_growth, next_segment, pending, segment_end

ASKED = 32
"""Steps whose queries are kept to say what was read."""
PERMUTATION = "permutation"
"""Name of a saved segment's permutation beside its other tensors."""


class WaveCache:
    """See the module; `layer` only keeps layers from taking up their segments at the same step.

    With `chunk_tokens` it is dual chunk attention: queries come as three, see `LayerCache.attend`.
    """

    def __init__(
        self,
        config: WaveConfig,
        store: BlockStore | None = None,
        *,
        layer: int = 0,
        lengths: Lengths | None = None,
        chunk_tokens: int | None = None,
        device: torch.device | None = None,
        block_cache: int = 0,
        tell: Callable[[], None] = lambda: None,
        beside: Beside | None = None,
        ahead: Beside | None = None,
    ) -> None:
        """`block_cache`: bytes of slots on a GPU for clusters of a store in pinned memory; `tell`
        is called when there is room for fewer only. On a GPU segments of a prompt are clustered and
        leave for the store `beside` what is computed, and come back `ahead` of exact attention."""
        self._config = config
        self._chunk_tokens = chunk_tokens
        self._device = torch.device("cpu") if device is None else device
        """Where what was saved is loaded to."""
        self._layer = layer
        self._lengths = Lengths() if lengths is None else lengths
        self._index = WaveIndex(config)
        self._store: BlockStore = RamStore() if store is None else store
        # On a GPU what waits to be clustered fits as it is: a captured step need not move.
        waiting = 2 * (config.growth_tokens + config.window_tokens + config.sink_tokens)
        self._steady = TokenBuffer(max(64, waiting) if self._device.type == "cuda" else 64)
        self._tokens = 0
        self._clustered_end = config.sink_tokens
        self._reader = Reader(config, self._index, self._steady, self._store, chunk_tokens, ahead)
        self._beside = beside
        self._coming: Coming | None = None
        """Where a segment of a prompt is being clustered, and that segment."""
        self._permutations: list[Tensor] = []
        """Per segment int32 [Hkv, N]: the place in the segment of each stored token."""
        self._snapshots: WeakSet[WaveSnapshot] = WeakSet()
        self._originals: dict[int, tuple[Tensor, Tensor]] = {}
        """K and V [Hkv, N, D] as they came, of segments that a living snapshot may reopen."""
        self._job: Job | None = None
        self._captured: DeviceStep | None = None
        """Takes the next `attend`, while a step is being captured."""
        self._blocks: DeviceBlockCache | None = None
        if block_cache:
            self._blocks = DeviceBlockCache(
                self._index.segments, block_cache, self._device, layer=layer, tell=tell
            )
        self._device_step = DeviceStep(self._index, self._steady, self._device)
        self._steps = self._device_step.sums
        self._asked: list[Tensor] = []
        self._settled = False

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def _extent(self) -> Extent:
        return Extent(self._tokens, self._clustered_end)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """See `LayerCache.attend`."""
        if self._captured is not None:
            return self._captured.step(q, k, v)
        if k.shape[1] == 1 and q.shape[-2] == 1:
            return self._step(q, k, v)
        self._take_up(early=True)
        out, first, asked_from = [], 0, k.shape[1] - q.shape[-2]
        short = self._settled and k.shape[1] <= self._lengths.stepped
        while first < k.shape[1]:
            self._arrive()
            last = first + self._room(k.shape[1] - first)
            self._steady.append(k[:, first:last], v[:, first:last])
            self._tokens += last - first
            if last > asked_from:
                piece = slice(max(0, first - asked_from), last - asked_from)
                out.append(self._answer(q[..., piece, :], short=short))
            self._cut_full()
            first = last
        return torch.cat(out, dim=1) if out else q.new_empty(q.shape[-3:])

    def resume(self) -> None:
        """What was loaded had been settled, and grew since."""
        self._settled = True

    def prepare_step(self) -> bool:
        """Whether the next single token may come as a captured step; makes everything ready."""
        self._arrive()
        if self._blocks is not None:
            self._blocks.before_step()
        return self._device_step.prepare()

    def shrink_block_cache(self) -> int:
        """See `relief.Shrinking`."""
        return 0 if self._blocks is None else self._blocks.shrink()

    @property
    def token_bytes(self) -> int:
        """Of a clustered token of one KV head, in the store."""
        first = self._index.segments[0]
        return first.codec.token_bytes(first.mean_key.shape[1])

    @property
    def admitted_bytes(self) -> int:
        """Copied into slots on a GPU so far."""
        return 0 if self._blocks is None else self._blocks.admitted_bytes

    def step_places(self) -> tuple[int, ...]:
        """What a captured step refers to: when it changes, the step has to be captured again."""
        return self._device_step.places()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """`attend` only launches, and leaves the cache as it is; for `stepped` to count."""
        self._captured = self._device_step
        try:
            with self._device_step.undone():
                yield
        finally:
            self._captured = None

    def stepped(self) -> None:
        """A captured step was replayed: one token more is held."""
        asked = self._device_step.took()
        self._tokens += 1
        self._steps.count += 1
        if self._blocks is not None:
            self._blocks.after_step()
        if len(self._asked) < ASKED:
            self._asked.append(asked.clone())
        self._grow()

    def settle(self) -> None:
        """The documents are read: clusters what a generation would cluster soon, so that it is part
        of a snapshot. From now on short prompts go through the index."""
        self._settled = True
        self._arrive()
        self._forget_originals()
        self._take_up(early=True)
        self._cut_full()
        self._arrive()
        while self._clusters() and pending(self._tokens, self._clustered_end, self._config) > (
            self._config.growth_tokens
        ):
            start = max(self._clustered_end, self._config.sink_tokens)
            end = segment_end(start, self._config, self._chunk_tokens)
            self._cut(min(end, self._tokens - self._config.window_tokens))
            self._arrive()

    def snapshot(self) -> WaveSnapshot:
        self._arrive()
        plan = None if self._job is None else self._job.plan
        self._forget_originals()
        held = len(self._index.segments)
        snapshot = WaveSnapshot(self._tokens, self._clustered_end, held, plan)
        self._snapshots.add(snapshot)
        return snapshot

    def restore(self, snapshot: WaveSnapshot) -> None:
        """Drops the tokens that came after `snapshot`; segments cut since go back to steady."""
        self._arrive()
        sinks, held = self._config.sink_tokens, len(self._index.segments)
        if self._job is not None:
            self._job.drop()
            self._job = None
        if snapshot.segments < held:
            reopened = [self._in_token_order(n) for n in range(snapshot.segments, held)]
            steady = self._steady.view()
            k, v = (
                torch.cat((t[:, :sinks], *(pair[i] for pair in reopened), t[:, sinks:]), dim=1)
                for i, t in enumerate(steady)
            )
            self._steady.replace(k, v)
        self._steady.keep(self._steady.tokens - (self._tokens - snapshot.tokens))
        self._tokens, self._clustered_end = snapshot.tokens, snapshot.clustered_end
        if self._blocks is not None:
            self._blocks.keep(snapshot.segments)
        self._index.keep(snapshot.segments)
        self._store.keep(snapshot.segments)
        del self._permutations[snapshot.segments :]
        self._originals = {n: rows for n, rows in self._originals.items() if n < snapshot.segments}
        if snapshot.plan is not None:
            self._begin(snapshot.plan)

    def saved_segments(self, first: int = 0) -> list[dict[str, Tensor]]:
        """The segments from number `first` on, as `load` takes them."""
        self._arrive()
        if self._device.type == "cuda":
            # What left the GPU has arrived.
            torch.cuda.synchronize(self._device)
        return [
            segment_tensors(self._whole(number)) | {PERMUTATION: self._permutations[number]}
            for number in range(first, len(self._permutations))
        ]

    def saved_to(self, number: int, stored: Stored) -> None:
        """The blocks of a segment lie in this file now, to stay there."""
        self._store.moved(number, stored)

    def saved_rest(self) -> dict[str, Tensor]:
        """What is in no segment, as `load` takes it; valid until the next token.

        Beside `k` and `v` [Hkv, N, D] the `plan` [3] of a segment that is being clustered.
        """
        self._arrive()
        rest = dict(zip(("k", "v"), self._steady.view(), strict=True))
        if self._job is not None:
            rest["plan"] = torch.tensor(astuple(self._job.plan))
        return rest

    def load(
        self,
        segments: Sequence[Mapping[str, Tensor]],
        rest: Mapping[str, Tensor],
        tokens: int,
        stored: Sequence[Stored] = (),
    ) -> None:
        """An empty cache becomes the one that was saved, of so many tokens.

        On a CPU segments are not copied: they may lie in a mapped file, `stored` says in which one
        their blocks lie. For a GPU the index is copied to it and the blocks to pinned memory.
        Raises StoreError; the cache is of no use then.
        """
        assert self._tokens == 0, "only an empty cache can be loaded"
        for number, tensors in enumerate(segments):
            segment = segment_of(tensors).index_on(self._device)
            held = self._store.append(segment, stored[number] if stored else None)
            self._index.append(held)
            if self._blocks is not None:
                self._blocks.append(held)
            self._permutations.append(tensors[PERMUTATION].to(self._device))
            self._clustered_end += segment.tokens
        self._steady.replace(*(rest[name].to(self._device) for name in ("k", "v")))
        self._tokens = tokens
        if "plan" in rest:
            self._begin(Plan(*rest["plan"].tolist()))

    def reset_statistics(self) -> None:
        """Starts the means over steps anew; the last query of the prompt is the first asked."""
        self._steps.reset()
        self._store.reset_figures()
        if self._blocks is not None:
            self._blocks.reset_figures()
        del self._asked[:-1]

    def read_from(self) -> Tensor | None:
        """The mean share of the attention that each position got since the last reset.

        float32 [tokens]; of the first steps, see `ASKED`.
        """
        if not self._asked:
            return None
        self._arrive()
        queries = torch.stack(self._asked, dim=-3)
        asked = self._reader.asked(queries, self._permutations, self._extent)
        if not self._index.segments:
            return dense_shares(asked)
        return clustered_shares(asked, self._config.sink_tokens)

    def statistics(self) -> CacheStatistics:
        self._arrive()
        steps, count, figures = self._steps, max(1, self._steps.count), self._store.figures()
        steps.collect()
        exact = steps.mass_exact / count if steps.count else 1.0
        if self._blocks is not None:
            figures = self._blocks.figures()
        return CacheStatistics(
            kind="dense" if self._lengths.may_stay_dense and not self._index.segments else "wave",
            tokens=self._tokens,
            steady_tokens=self._steady.tokens,
            clusters=self._index.clusters,
            bytes=self._steady.bytes
            + self._store.bytes
            + sum(nbytes(*rows) for rows in self._originals.values()),
            index_bytes=self._index.bytes,
            steps=steps.count,
            retrieved_tokens=steps.retrieved_tokens / count,
            bytes_per_step=steps.bytes / count,
            mass_exact=exact,
            mass_estimated=1.0 - exact,
            file_bytes=figures.file_bytes,
            block_cache_bytes=figures.cache_bytes,
            hits=figures.hits,
            fetched=figures.fetched,
            slow_bytes=figures.read_bytes / count,
        )

    def _step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One new token, one query."""
        self._arrive()
        self._steady.append(k, v)
        self._tokens += 1
        self._steps.count += 1
        if self._chunk_tokens is not None and self._tokens % self._chunk_tokens == 1:
            # What was asked from the chunk before had other ranges.
            self._asked.clear()
        if len(self._asked) < ASKED:
            self._asked.append(q[..., 0, :].clone())
        if len(self._index.segments) == 0:
            out = self._reader.steady(q, self._extent)[0].to(q.dtype)
            self._steps.mass_exact += 1.0
        else:
            if self._blocks is not None:
                self._blocks.before_step()
            answer = self._reader.step(q, self._extent)
            out = answer.out[:, None].to(q.dtype, copy=True)
            self._steps.add(answer)
            if self._blocks is not None:
                self._blocks.after_step()
        self._grow()
        return out

    def _answer(self, q: Tensor, *, short: bool) -> Tensor:
        """The last Tq tokens over everything held: [Hq, Tq, D]."""
        self._asked = [q[..., -1, :].clone()]
        through_index = self._tokens >= self._lengths.prefill()
        if through_index and q.shape[-2] == 1 and self._blocks is not None:
            self._blocks.before_step()
        return self._reader.prompt(q, self._extent, through_index=through_index, short=short)

    def _room(self, tokens: int) -> int:
        """How many of so many new tokens may come before a full segment has to be cut.

        Under dual chunk attention none of them lies in the next chunk.
        """
        size, chunk = self._config.segment_tokens, self._chunk_tokens
        start = max(self._clustered_end, self._config.sink_tokens)
        end = segment_end(start, self._config, chunk)
        missing = end + self._config.window_tokens - self._tokens
        missing = missing if missing > 0 else size
        left = tokens if chunk is None else min(tokens, chunk - self._tokens % chunk)
        if missing >= left:
            return left
        short = not self._index.segments and self._tokens + tokens <= self._lengths.cluster()
        return left if short else missing

    def _clusters(self) -> bool:
        """Whether the context is long enough to be clustered at all."""
        waiting = pending(self._tokens, self._clustered_end, self._config)
        least = min(self._config.growth_tokens, self._config.segment_tokens)
        return waiting >= least and self._is_long()

    def _is_long(self) -> bool:
        return bool(len(self._index.segments)) or self._tokens > self._lengths.cluster()

    def _cut_full(self) -> None:
        """Cuts all full segments."""
        while True:
            end = self._clustered_end if self._coming is None else self._coming.stop
            span = next_segment(self._tokens, end, self._config, self._chunk_tokens)
            if span is None or not self._is_long():
                return
            self._cut(span.stop)

    def _cut(self, stop: int) -> None:
        """Makes the waiting tokens up to position `stop` a segment, now or beside what follows."""
        self._arrive()
        sinks, count = self._config.sink_tokens, stop - self._clustered_end
        keys, values = self._steady.view(sinks, sinks + count)
        if self._beside is None:
            segment, permutation = cluster_segment(keys, values, self._config)
            self._take(self._store.append(segment), permutation, stop)
            return
        with self._beside.work(keys, values):
            segment, permutation = cluster_segment(keys, values, self._config)
            held = self._store.append(segment)
        self._coming = Coming(held, permutation, stop, self._beside.mark())
        self._beside.begun(self._arrive)

    def _arrive(self) -> None:
        """Takes up the segment that is clustered beside; whatever is computed next waits for it."""
        coming, self._coming = self._coming, None
        if coming is not None:
            assert self._beside is not None
            self._beside.wait(coming.mark, *coming.held.tensors(), coming.permutation)
            self._take(coming.held, coming.permutation, coming.stop)

    def _take(self, held: Segment, permutation: Tensor, stop: int) -> None:
        """A segment as the store holds it, which says where the tokens up to `stop` are now."""
        sinks, number = self._config.sink_tokens, len(self._index.segments)
        count = stop - self._clustered_end
        # What may find memory full comes first, and leaves everything as it was.
        originals = None
        try:
            if not held.codec.plain and any(s.segments <= number for s in self._snapshots):
                keys, values = self._steady.view(sinks, sinks + count)
                originals = keys.clone(), values.clone()
            self._index.append(held)
            self._steady.drop(sinks, count)
        except torch.OutOfMemoryError:
            self._index.keep(number)
            self._store.keep(number)
            raise
        self._clustered_end = stop
        if originals is not None:
            self._originals[number] = originals
        if self._blocks is not None:
            self._blocks.append(held)
        self._permutations.append(permutation)

    def _grow(self) -> None:
        """Takes up what is due, then begins what can be begun; later where memory is full."""
        with suppress(torch.OutOfMemoryError):
            self._take_up(early=False)
            if self._job is None and self._clusters():
                span = next_growth(
                    self._tokens, self._clustered_end, self._config, self._chunk_tokens
                )
                if span is not None:
                    # Longer segments take longer; layers take theirs up one after another.
                    due = self._tokens + 32 + len(span) // 32 + self._layer
                    self._begin(Plan(span.start, span.stop, due))

    def _begin(self, plan: Plan) -> None:
        sinks = self._config.sink_tokens
        keys, values = self._steady.view(sinks, sinks + plan.stop - plan.start)
        self._job = Job(plan, keys, values, self._config)

    def _take_up(self, *, early: bool) -> None:
        """Makes the segment under work part of the index when it is due, or at once."""
        job = self._job
        if job is not None and (early or self._tokens >= job.plan.due):
            self._job = None
            segment, permutation = job.result()
            self._take(self._store.append(segment), permutation, job.plan.stop)

    def _forget_originals(self) -> None:
        """Of segments that no living snapshot may reopen."""
        held = len(self._index.segments)
        earliest = min((s.segments for s in self._snapshots), default=held)
        self._originals = {n: rows for n, rows in self._originals.items() if n >= earliest}

    def _whole(self, number: int) -> Segment:
        """A segment with blocks that stay valid."""
        held, whole = self._index.segments[number], self._store.whole(number)
        return replace(whole, blocks=whole.blocks.clone()) if held.blocks.is_meta else whole

    def _in_token_order(self, number: int) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, N, D] of a segment as they came.

        What a codec lost is there again for a segment that a living snapshot may reopen.
        """
        if number in self._originals:
            return self._originals[number]
        assert self._index.segments[number].codec.plain, "a snapshot of another cache"
        k, v = stored_rows(self._store.whole(number))
        back = torch.argsort(self._permutations[number].long(), dim=1)[..., None].expand_as(k)
        return k.gather(1, back), v.gather(1, back)
