"""Keys and values have to be finite numbers: said of a CPU's pass at once, of a GPU's one late.

To ask a GPU is to wait for it. So a pass leaves sums there, a copy of them travels to the host by
itself, and is looked at when the next pass begins, or with the logits, for which somebody waits
anyway. A captured step is not looked at: what is wrong with it is seen in its logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NumericsError

REMEDY = "the weights are damaged or their dtype is too narrow (try --dtype float32)"


def require_finite(k: Tensor, v: Tensor, positions: Tensor, layer: int) -> None:
    """Raises NumericsError that names the first key or value that is not a finite number.

    One sum each: it is finite when all its terms are.
    """
    if math.isfinite(sum(rows.sum(dtype=torch.float32).item() for rows in (k, v))):
        return
    for name, rows in (("key", k), ("value", v)):
        for head, place, _ in (~torch.isfinite(rows)).nonzero()[:1].tolist():
            raise NumericsError(
                f"layer {layer}, KV head {head}, position {int(positions[place])}: the {name} is "
                f"not finite; {REMEDY}"
            )


class FiniteWatch:
    """The same for the layers of a model on a GPU; see the module. One pass after the other."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self._sums = torch.zeros(layers, 2, device=device)
        self._gpu = device.type == "cuda"
        self._found: Tensor | None = None
        """On the host, once `_arrived`: the sums of the last pass that was ended."""
        self._arrived: torch.cuda.Event | None = None
        self._positions = torch.empty(0)

    def begin(self) -> None:
        """A pass begins; raises NumericsError for the one before."""
        if not self._captured:
            self.look()

    def note(self, k: Tensor, v: Tensor, positions: Tensor, layer: int) -> None:
        """k, v [Hkv, T, D] of a layer; launches only."""
        for kind, rows in enumerate((k, v)):
            self._sums[layer, kind].copy_(rows.sum(dtype=torch.float32))

    def ended(self, positions: Tensor, *, wait: bool) -> None:
        """All layers have been noted for these positions, int64 [T]; `wait` and look at them."""
        if self._captured:
            return
        self._positions = positions
        self._found = torch.empty(self._sums.shape, pin_memory=self._gpu)
        self._found.copy_(self._sums, non_blocking=True)
        if self._gpu:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        if wait:
            self.look()

    @property
    def _captured(self) -> bool:
        return self._gpu and torch.cuda.is_current_stream_capturing()

    def look(self) -> None:
        """Raises NumericsError for the last pass that ended; waits for it."""
        found, self._found = self._found, None
        if found is None:
            return
        if self._arrived is not None:
            self._arrived.synchronize()
        for layer, kind in (~torch.isfinite(found)).nonzero()[:1].tolist():
            first, last = int(self._positions[0]), int(self._positions[-1])
            raise NumericsError(
                f"layer {layer}, positions {first} to {last}: a {('key', 'value')[kind]} is not "
                f"finite; {REMEDY}"
            )
