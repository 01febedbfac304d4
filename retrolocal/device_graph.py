"""A whole decode step of a model as one CUDA graph.

`GraphedModel` is the model to whoever calls it. Several tokens at once, caches that cannot be
captured (dense ones, those without a segment yet) and models that read something back in the middle
of a step (a router's choice of experts) go to the model itself. One token over captured caches is a
replay: the host copies a token id and a position, and counts along. The graph is captured again
only when something it refers to has moved, which capacities that double make rare; a segment that
is added changes tables, not the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .device import device_errors
from .generate import Model
from .relief import Relief

Replay = Callable[[], object]


@runtime_checkable
class CapturedCache(Protocol):
    """A layer cache whose steps can be captured; `WaveCache` and `RingCache` on a GPU."""

    def prepare_step(self) -> bool: ...
    def step_places(self) -> tuple[int, ...]: ...
    def capturing(self) -> AbstractContextManager[None]: ...
    def stepped(self) -> None: ...


def capture(run: Callable[[], object]) -> Replay:
    """Runs once, to compile and to warm up, then captures; the result replays."""
    before = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    before.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(before):
        run()
    torch.cuda.current_stream().wait_stream(before)
    graph = torch.cuda.CUDAGraph()
    # Segments are clustered in another thread meanwhile, which must not spoil the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def stepping(device: torch.device, relief: Relief | None = None) -> Callable[[Model], Model]:
    """Makes of one model the one for single tokens: on a GPU a captured one, always the same."""
    if device.type != "cuda":
        return lambda model: model
    made: list[GraphedModel] = []

    def captured(model: Model) -> Model:
        if not made:
            made.append(GraphedModel(model, relief=relief))
        return made[0]

    return captured


class GraphedModel:
    """See the module. `captured` counts captures."""

    def __init__(
        self,
        model: Model,
        *,
        capture: Callable[..., Replay] = capture,
        relief: Relief | None = None,
    ) -> None:
        self._model, self._capture = model, capture
        self._relief = Relief() if relief is None else relief
        self._replay: Replay | None = None
        self._key: tuple[object, ...] = ()
        self._ids: Tensor | None = None
        self._positions: Tensor | None = None
        self._logits: Tensor | None = None
        self.captured = 0

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Sequence[Any],
        wanted: int,
        on_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        """See `Decoder.forward`."""
        with device_errors():
            return self._answer(token_ids, positions, caches, wanted, on_layer)

    def _answer(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Sequence[Any],
        wanted: int,
        on_layer: Callable[[int], None] | None,
    ) -> Tensor:
        single = token_ids.shape[0] == 1 and wanted == 1 and on_layer is None
        single = single and getattr(self._model, "capturable", True)
        if not (single and all(isinstance(cache, CapturedCache) for cache in caches)):
            return self._model(token_ids, positions, caches, wanted, on_layer)
        while True:
            full: torch.OutOfMemoryError | None = None
            try:
                ready = self._prepare(token_ids, positions, caches)
            except torch.OutOfMemoryError as error:
                # Without the frames that still hold what was made.
                full = error.with_traceback(None)
            if full is None:
                break
            self._replay = None
            if not self._relief.for_step(caches):
                raise full
        if not ready:
            return self._model(token_ids, positions, caches, wanted)
        assert self._replay is not None
        self._replay()
        for cache in caches:
            cache.stepped()
        assert self._logits is not None
        return self._logits.clone()

    def _prepare(
        self, token_ids: Tensor, positions: Tensor, caches: Sequence[CapturedCache]
    ) -> bool:
        """Makes everything ready for a replay; False: this step cannot be one."""
        if not all([cache.prepare_step() for cache in caches]):
            return False
        if self._ids is None or self._positions is None:
            self._ids, self._positions = token_ids.clone(), positions.clone()
        self._ids.copy_(token_ids)
        self._positions.copy_(positions)
        if self._replay is None or self._places(caches) != self._key:
            self._record(caches)
        return True

    def _record(self, caches: Sequence[CapturedCache]) -> None:
        self._replay = None  # gives the memory of the old graph back first

        def run() -> None:
            self._logits = self._model(self._ids, self._positions, caches, 1)  # type: ignore[arg-type]

        with ExitStack() as stack:
            for cache in caches:
                stack.enter_context(cache.capturing())
            self._replay = self._capture(run)
        self._key = self._places(caches)
        self.captured += 1

    def _places(self, caches: Sequence[CapturedCache]) -> tuple[object, ...]:
        return tuple((id(cache), cache.step_places()) for cache in caches)
