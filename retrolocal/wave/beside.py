"""A second stream of a GPU, beside the one that computes; on a CPU both are one.

Streams wait for each other, the host for none. What is launched in `work` comes after everything
that the computing stream had been given, and runs while that goes on; who needs its result lets
the computing stream wait for a `mark`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakMethod

import torch
from torch import Tensor

Mark = torch.cuda.Event | None
"""A point in the second stream; None where there is none."""


AHEAD = 2
"""Pieces of work whose results have not been taken up: one that runs, one that is taken next."""


class Beside:
    """See the module. Shared by the layers of a context."""

    def __init__(self, device: torch.device) -> None:
        gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if gpu else None  # type: ignore[no-untyped-call]
        self._begun: deque[WeakMethod[Callable[[], None]]] = deque()

    @contextmanager
    def work(self, *read: Tensor) -> Iterator[None]:
        """What is launched inside goes to the second stream; `read` are tensors of the first that
        it reads: their memory is not given to others before it has."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        for tensor in read:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Mark:
        """Behind everything that the second stream has been given."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def begun(self, take_up: Callable[[], None]) -> None:
        """Work was given whose result a method takes up; that of older work is called now.

        So what is held for results to come does not grow with the number of layers.
        """
        self._begun.append(WeakMethod(take_up))
        while len(self._begun) > AHEAD:
            oldest = self._begun.popleft()()
            if oldest is not None:
                oldest()

    def wait(self, mark: Mark, *made: Tensor) -> None:
        """The computing stream waits; `made` are tensors of the second stream that it then uses."""
        if mark is None:
            return
        current = torch.cuda.current_stream()
        current.wait_event(mark)
        for tensor in made:
            if tensor.device.type == "cuda":
                tensor.record_stream(current)
