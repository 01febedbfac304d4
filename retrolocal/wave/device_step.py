"""One decode step of a layer as launches only, so that a CUDA graph can hold it; and its sums.

A graph repeats the same launches on the same memory. So the new token's keys and values go behind
those of the steady zone at a place that is read on the device, the number of tokens there is
counted on the device, and what is said about a step is added up on the device. The host counts
along (`took`) and writes the number anew when a segment was taken up in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..kernels.wave_attention import StepAnswer
from ..token_buffer import TokenBuffer
from .index import WaveIndex

ROOM = 256
"""Tokens that the steady zone has room for, at least, before it has to move."""


@dataclass(slots=True)
class Steps:
    """Sums over decode steps since the last reset; means over heads within a step."""

    count: int = 0
    retrieved_tokens: float = 0.0
    mass_exact: float = 0.0
    bytes: float = 0
    on_device: Tensor | None = None
    """float64 [3]: the same three of steps on a GPU, which wait for nothing."""

    def add(self, answer: StepAnswer) -> None:
        exact, retrieved, read = answer.mass_exact, answer.retrieved_tokens, answer.bytes
        if isinstance(read, int):
            self.mass_exact += fmean(exact.tolist())
            self.retrieved_tokens += fmean(retrieved.tolist())
            self.bytes += read
            return
        if self.on_device is None:
            self.on_device = torch.zeros(3, dtype=torch.float64, device=exact.device)
        means = (retrieved.double().mean(), exact.double().mean(), read.sum().double())
        self.on_device += torch.stack(means)

    def collect(self) -> None:
        """Takes over what a GPU has counted; waits for it."""
        if self.on_device is not None:
            retrieved, exact, read = self.on_device.tolist()
            self.retrieved_tokens += retrieved
            self.mass_exact += exact
            self.bytes += read
            self.on_device.zero_()

    def reset(self) -> None:
        """The sums on a GPU keep their place, to which a captured step adds."""
        self.collect()
        self.count, self.retrieved_tokens, self.mass_exact, self.bytes = 0, 0.0, 0.0, 0


class DeviceStep:
    """See the module. Belongs to one `WaveCache`, whose index and steady zone these are."""

    def __init__(self, index: WaveIndex, steady: TokenBuffer, device: torch.device) -> None:
        self._index, self._steady, self._device = index, steady, device
        self.sums = Steps()
        self._count: Tensor | None = None
        """int32 [1]: tokens of the steady zone."""
        self._counted = -1
        """What the host believes it says."""
        self._q: Tensor | None = None
        """[Hq, D] of the captured step; a replay writes it anew."""
        self._places: tuple[int, ...] = ()

    @property
    def possible(self) -> bool:
        """Whether a step can be captured here."""
        return self._device.type == "cuda" and len(self._index.segments) > 0

    def prepare(self) -> bool:
        """Makes room for a token, writes tables and count when they changed; False: not here."""
        if not self.possible:
            return False
        capacity = self._steady.room()[0].shape[1]
        if self._steady.tokens >= capacity:
            self._steady.reserve(max(ROOM, capacity))
        if self._count is None:
            self._count = torch.zeros(1, dtype=torch.int32, device=self._device)
        if self._counted != self._steady.tokens:
            self._count.fill_(self._steady.tokens)
            self._counted = self._steady.tokens
        if self._q is not None:
            self._places = self._index.prepare_on_device(self._q)
        return True

    def places(self) -> tuple[int, ...]:
        """See `WaveCache.step_places`."""
        k, _ = self._steady.room()
        slots = self._index.segments.slots
        slot_map = 0 if slots is None else slots.places.data_ptr()
        return (k.data_ptr(), k.shape[1], slot_map, *self._places)

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [Hq, 1, D], k and v [Hkv, 1, D] of one token -> [Hq, 1, D]; launches only."""
        assert self._count is not None, "prepare comes first"
        own = q[:, 0].contiguous()
        self._places = self._index.prepare_on_device(own)
        keys, values = self._steady.room()
        keys.index_copy_(1, self._count.long(), k)
        values.index_copy_(1, self._count.long(), v)
        self._count += 1
        answer = self._index.answer_on_device(own, (keys, values), self._count)
        self.sums.add(answer)
        self._q = own
        return answer.out[:, None].to(q.dtype, copy=True)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Afterwards count and sums are as before; what was written behind the tokens is void."""
        assert self._count is not None, "prepare comes first"
        self.sums.collect()
        count = self._count.clone()
        try:
            yield
        finally:
            self._count.copy_(count)
            if self.sums.on_device is not None:
                self.sums.on_device.zero_()

    def took(self) -> Tensor:
        """The device has taken a token; its query [Hq, D], valid until the next."""
        assert self._q is not None, "a step was captured before"
        self._steady.tokens += 1
        self._counted += 1
        return self._q
