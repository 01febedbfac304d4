"""Layer caches that attend exactly: the whole context, or a sliding window of it.

A layer cache owns the keys and values of one layer and answers queries over them; it never hands
them out. `DenseCache` is the reference that every other cache is measured against. All caches
can be set back: `snapshot()` costs at most the tokens still unclustered (here: nothing), and
`restore()` drops what came after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .device_ring import DeviceRing
from .kernels.attention import causal_attention
from .kernels.chunked_attention import chunked_attention, pieces
from .statistics import CacheStatistics
from .token_buffer import TokenBuffer

DIALOGUE = 4096
"""Tokens behind a text that there is room for from the start."""


class DenseCache:
    """Full causal attention over everything appended: the reference `LayerCache`.

    With `chunk_tokens` it is dual chunk attention, see `LayerCache.attend`.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        *,
        chunk_tokens: int | None = None,
        expected: int = 0,
    ) -> None:
        """What was saved is loaded to `device`, the CPU when none is given.

        Room for `expected` tokens and a dialogue is taken at once: growing to it would copy them,
        into as much memory again.
        """
        self._device = torch.device("cpu") if device is None else device
        self._buffer = TokenBuffer(expected + DIALOGUE)
        self._chunk_tokens = chunk_tokens

    @property
    def tokens(self) -> int:
        return self._buffer.tokens

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """See `LayerCache.attend`."""
        self._buffer.append(k, v)
        asking, scale = q.shape[-2], q.shape[-1] ** -0.5
        if asking == 0:
            return q.new_empty(q.shape[-3:])
        keys, values = self._buffer.view()
        if self._chunk_tokens is None:
            out, _ = causal_attention(q, keys, values, scale=scale)
            return out.to(q.dtype)

        def held(positions: range) -> tuple[Tensor, Tensor]:
            chosen = slice(positions.start, positions.stop)
            return keys[:, chosen], values[:, chosen]

        first, length = self.tokens - asking, self._chunk_tokens
        outs = []
        for piece in pieces(first, self.tokens, length):
            own = q[:, :, piece.start - first : piece.stop - first]
            outs.append(chunked_attention(own, piece.stop, length, held, scale=scale)[0])
        return torch.cat(outs, dim=1).to(q.dtype)

    def settle(self) -> None:
        """There is nothing to prepare here."""

    def resume(self) -> None:
        """Nor here."""

    def snapshot(self) -> int:
        return self._buffer.tokens

    def restore(self, snapshot: int) -> None:
        self._buffer.keep(snapshot)

    def saved_segments(self, first: int = 0) -> list[dict[str, Tensor]]:
        """There are none."""
        return []

    def saved_rest(self) -> dict[str, Tensor]:
        """Everything held, as `load` takes it; valid until the next token."""
        return dict(zip(("k", "v"), self._buffer.view(), strict=True))

    def saved_to(self, number: int, stored: object) -> None:
        """There are no segments."""

    def load(
        self,
        segments: Sequence[Mapping[str, Tensor]],
        rest: Mapping[str, Tensor],
        tokens: int,
        stored: Sequence[object] = (),
    ) -> None:
        """An empty cache becomes the one that was saved."""
        self._buffer.replace(rest["k"].to(self._device), rest["v"].to(self._device))

    def reset_statistics(self) -> None:
        """Nothing is counted per step here."""

    def read_from(self) -> None:
        """Not known."""

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            kind="dense",
            tokens=self.tokens,
            steady_tokens=self.tokens,
            clusters=0,
            bytes=self._buffer.bytes,
        )


@dataclass(frozen=True, slots=True)
class RingSnapshot:
    tokens: int
    held: tuple[Tensor, Tensor] | None


class RingCache:
    """Sliding-window attention: a query sees itself and the `window - 1` tokens before it.

    Only the last `window - 1` tokens are held between calls, whatever the length of the context.
    """

    def __init__(self, window: int, device: torch.device | None = None) -> None:
        """What was saved is loaded to `device`, the CPU when none is given."""
        assert window >= 1
        self._device = torch.device("cpu") if device is None else device
        self._window = window
        self._last: tuple[Tensor, Tensor] | None = None
        """K and V [Hkv, n, D] of the tokens held; None: there are none, or `_ring` has them."""
        self._tokens = 0
        self._ring = DeviceRing(window, self._device)
        self._in_ring = False
        """Whether captured steps have gone on since `_last`."""
        self._captured: DeviceRing | None = None
        """Takes the next `attend`, while a step is being captured."""

    @property
    def tokens(self) -> int:
        return self._tokens

    @property
    def _held(self) -> tuple[Tensor, Tensor] | None:
        if self._in_ring:
            self._last, self._in_ring = self._ring.held(self._tokens), False
        return self._last

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """See `LayerCache.attend`."""
        if self._captured is not None:
            return self._captured.step(q, k, v)
        held, new = self._held, k.shape[1]
        if held is not None:
            k, v = (torch.cat(pair, dim=1) for pair in zip(held, (k, v), strict=True))
        out = windowed_attention(q, k, v, self._window)
        keep = max(0, k.shape[1] - (self._window - 1))
        self._hold(self._tokens + new, (k[:, keep:].clone(), v[:, keep:].clone()))
        return out

    def prepare_step(self) -> bool:
        """Whether the next single token may come as a captured step; makes everything ready."""
        if not self._ring.possible or self._tokens == 0:
            return False
        if not self._in_ring:
            assert self._last is not None
            self._ring.fill(self._last, self._tokens)
            self._in_ring = True
        return True

    def step_places(self) -> tuple[int, ...]:
        """What a captured step refers to: when it changes, the step has to be captured again."""
        return self._ring.places()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """`attend` only launches, and leaves the cache as it is; for `stepped` to count."""
        self._captured = self._ring
        try:
            with self._ring.undone():
                yield
        finally:
            self._captured = None

    def stepped(self) -> None:
        """A captured step was replayed: one token more is held."""
        self._tokens += 1

    def _hold(self, tokens: int, held: tuple[Tensor, Tensor] | None) -> None:
        self._tokens, self._last, self._in_ring = tokens, held, False

    def settle(self) -> None:
        """There is nothing to prepare here."""

    def resume(self) -> None:
        """Nor here."""

    def snapshot(self) -> RingSnapshot:
        return RingSnapshot(self._tokens, self._held)

    def restore(self, snapshot: RingSnapshot) -> None:
        self._hold(snapshot.tokens, snapshot.held)

    def saved_segments(self, first: int = 0) -> list[dict[str, Tensor]]:
        """There are none."""
        return []

    def saved_rest(self) -> dict[str, Tensor]:
        """The tokens held, as `load` takes them."""
        held = self._held
        return {} if held is None else dict(zip(("k", "v"), held, strict=True))

    def saved_to(self, number: int, stored: object) -> None:
        """There are no segments."""

    def load(
        self,
        segments: Sequence[Mapping[str, Tensor]],
        rest: Mapping[str, Tensor],
        tokens: int,
        stored: Sequence[object] = (),
    ) -> None:
        """An empty cache becomes the one that was saved, of so many tokens."""
        held = None
        if rest:
            held = (rest["k"].to(self._device, copy=True), rest["v"].to(self._device, copy=True))
        self._hold(tokens, held)

    def reset_statistics(self) -> None:
        """Nothing is counted per step here."""

    def read_from(self) -> None:
        """Not known."""

    def statistics(self) -> CacheStatistics:
        held = () if self._last is None else self._last
        row = sum(t[:, :1].nbytes for t in held)
        steady = min(self._tokens, self._window - 1) if held else 0
        return CacheStatistics(
            kind="window",
            tokens=self._tokens,
            steady_tokens=steady,
            clusters=0,
            bytes=steady * row,
        )


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Banded causal attention of the last Tq of N tokens.

    q [Hq, Tq, D], k and v [Hkv, N, D]. Queries go in blocks of at least `window`, each against its
    own tokens and the `window` before, so the cost is linear in Tq and no [Tq, N] mask is made.
    """
    heads, asking, dim = q.shape
    if asking == 0:
        return torch.empty_like(q)
    k, v = (t[:, max(0, t.shape[1] - asking - window) :] for t in (k, v))
    before = k.shape[1] - asking
    block = min(asking, max(window, 64))
    blocks = -(-asking // block)
    pad = (0, 0, window - before, blocks * block - asking)
    spans = [F.pad(t, pad).unfold(1, block + window, block).transpose(2, 3) for t in (k, v)]
    q = F.pad(q, (0, 0, 0, blocks * block - asking)).view(heads, blocks, block, dim)
    distance = torch.arange(block, device=q.device)[:, None] + window
    distance = distance - torch.arange(block + window, device=q.device)
    visible = ((distance >= 0) & (distance < window)).expand(blocks, 1, -1, -1)
    if before < window:
        visible = visible.clone()
        missing = torch.arange(blocks, device=q.device)[:, None] * block
        missing = missing + torch.arange(block + window, device=q.device) < window - before
        visible &= ~missing[:, None, None, :]
    groups = heads // k.shape[0]
    keys, values = (t.transpose(0, 1).repeat_interleave(groups, dim=1) for t in spans)
    out = F.scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=visible)
    return out.transpose(0, 1).reshape(heads, blocks * block, dim)[:, :asking]
