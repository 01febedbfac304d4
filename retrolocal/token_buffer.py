"""Keys and values of a run of tokens, in order, in one growing array: what caches append to."""

from __future__ import annotations

from torch import Tensor


class TokenBuffer:
    """Keys and values in token order, in an array that doubles when it is full."""

    def __init__(self) -> None:
        self._data: Tensor | None = None
        self.tokens = 0

    def append(self, k: Tensor, v: Tensor) -> None:
        """k, v [Hkv, T, D]."""
        needed = self.tokens + k.shape[1]
        if self._data is None or needed > self._data.shape[2]:
            capacity = max(needed, 64, 0 if self._data is None else 2 * self._data.shape[2])
            data = k.new_empty((2, k.shape[0], capacity, k.shape[2]))
            if self._data is not None:
                data[:, :, : self.tokens] = self._data[:, :, : self.tokens]
            self._data = data
        self._data[0, :, self.tokens : needed] = k
        self._data[1, :, self.tokens : needed] = v
        self.tokens = needed

    def view(self, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, stop - start, D] without a copy; valid until the next `append`."""
        assert self._data is not None, "nothing was appended"
        both = self._data[:, :, start : self.tokens if stop is None else stop]
        return both[0], both[1]

    def keep(self, tokens: int) -> None:
        """Forgets all but the first `tokens`."""
        assert 0 <= tokens <= self.tokens
        self.tokens = tokens

    def drop(self, start: int, count: int) -> None:
        """Forgets `count` tokens from `start` on; those after them move up."""
        assert self._data is not None
        assert 0 <= start <= start + count <= self.tokens
        rest = self._data[:, :, start + count : self.tokens].clone()
        self.tokens -= count
        if 4 * self.tokens < self._data.shape[2]:
            # Give the room of a long document's last piece back.
            self._data = self._data[:, :, : max(2 * self.tokens, 64)].clone()
        self._data[:, :, start : self.tokens] = rest

    def replace(self, k: Tensor, v: Tensor) -> None:
        """Holds exactly k, v [Hkv, T, D] from now on."""
        self.tokens = 0
        self.append(k, v)

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held (the spare room of the array is not counted)."""
        if self._data is None:
            return 0
        return self._data[:, :, : self.tokens].numel() * self._data.element_size()
