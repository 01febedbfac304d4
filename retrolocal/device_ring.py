"""A decode step of sliding-window attention as launches only, so that a CUDA graph can hold it.

The keys and values that the next token sees lie in a ring of `window` places on the device, token
t in place t % window; the device counts along. Their order means nothing to attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class DeviceRing:
    """See the module. Belongs to one `RingCache`, which knows how many tokens there are."""

    def __init__(self, window: int, device: torch.device) -> None:
        self._window, self._device = window, device
        self._rows: Tensor | None = None
        """[2, Hkv, window, D]."""
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        """Tokens that the device has taken."""
        self._places = torch.arange(window, device=device)

    @property
    def possible(self) -> bool:
        """Whether a step can be captured here."""
        return self._device.type == "cuda"

    def fill(self, held: Pair, tokens: int) -> None:
        """Takes the last n < window of so many tokens; held are K and V [Hkv, n, D]."""
        k, v = held
        if self._rows is None:
            shape = (2, k.shape[0], self._window, k.shape[2])
            self._rows = torch.zeros(shape, dtype=k.dtype, device=self._device)
        first = tokens - k.shape[1]
        places = torch.arange(first, tokens, device=self._device) % self._window
        for rows, own in zip(self._rows, (k, v), strict=True):
            rows.index_copy_(1, places, own)
        self._count.fill_(tokens)

    def held(self, tokens: int) -> Pair:
        """The last window - 1 of so many tokens, as they came: copies."""
        assert self._rows is not None, "it was never filled"
        first = max(0, tokens - (self._window - 1))
        places = torch.arange(first, tokens, device=self._device) % self._window
        k, v = self._rows.index_select(2, places)
        return k, v

    def places(self) -> tuple[int, ...]:
        """What a captured step refers to."""
        assert self._rows is not None, "it was never filled"
        return (self._rows.data_ptr(),)

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [Hq, 1, D], k and v [Hkv, 1, D] of one token -> [Hq, 1, D]; launches only."""
        assert self._rows is not None, "it was never filled"
        keys, values = self._rows
        place = self._count % self._window
        keys.index_copy_(1, place, k)
        values.index_copy_(1, place, v)
        self._count += 1
        group = q.shape[0] // k.shape[0]
        asked = q.view(k.shape[0], group, q.shape[2])
        seen = (self._places < self._count).expand(1, 1, group, -1)
        out = F.scaled_dot_product_attention(asked[None], keys[None], values[None], attn_mask=seen)
        return out[0].reshape(q.shape)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Afterwards all is as before: the oldest token, which a step writes over, is back."""
        assert self._rows is not None, "it was never filled"
        rows, count = self._rows.clone(), self._count.clone()
        try:
            yield
        finally:
            self._rows.copy_(rows)
            self._count.copy_(count)
