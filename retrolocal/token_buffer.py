"""Keys and values of a run of tokens, in order, in one growing array: what caches append to."""

from __future__ import annotations

from torch import Tensor


class TokenBuffer:
    """Keys and values in token order, in an array that doubles when it is full."""

    def __init__(self, least: int = 64) -> None:
        """The array never has room for fewer than `least` tokens."""
        self._least = least
        self._data: Tensor | None = None
        self.tokens = 0

    def append(self, k: Tensor, v: Tensor) -> None:
        """k, v [Hkv, T, D]."""
        needed = self.tokens + k.shape[1]
        if self._data is None:
            self._data = k.new_empty((2, k.shape[0], max(needed, self._least), k.shape[2]))
        self.reserve(k.shape[1])
        self._data[0, :, self.tokens : needed] = k
        self._data[1, :, self.tokens : needed] = v
        self.tokens = needed

    def reserve(self, tokens: int) -> None:
        """Makes room for so many more; something was appended before."""
        assert self._data is not None, "nothing was appended"
        needed = self.tokens + tokens
        if needed > self._data.shape[2]:
            shape = list(self._data.shape)
            shape[2] = max(needed, 2 * shape[2])
            data = self._data.new_empty(shape)
            data[:, :, : self.tokens] = self._data[:, :, : self.tokens]
            self._data = data

    def room(self) -> tuple[Tensor, Tensor]:
        """K and V [Hkv, capacity, D], of which the first `tokens` are held; theirs until it grows.

        Whoever writes behind them says so by counting `tokens` up.
        """
        assert self._data is not None, "nothing was appended"
        return self._data[0], self._data[1]

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
        """Forgets `count` tokens from `start` on; those after them move up.

        Where there is no memory for that, everything stays as it was.
        """
        assert self._data is not None
        assert 0 <= start <= start + count <= self.tokens
        rest, data = self._data[:, :, start + count : self.tokens].clone(), self._data
        tokens = self.tokens - count
        smaller = max(2 * tokens, self._least)
        if 4 * tokens < data.shape[2] and smaller < data.shape[2]:
            # Give the room of a long document's last piece back.
            data = data[:, :, :smaller].clone()
        data[:, :, start:tokens] = rest
        self._data, self.tokens = data, tokens

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
