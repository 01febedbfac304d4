"""`with` for what has a `close`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self


class Closing:
    """A context manager that closes itself."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
