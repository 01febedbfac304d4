"""Wave prefill where a group promises far more than its clusters hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retrolocal.kernels import wave_prefill
from retrolocal.kernels.wave_prefill import Blocks, wave_prefill_reference


@pytest.mark.parametrize("compiled", [False, True])
def test_a_group_that_promises_too_much_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch, make_step: Callable[..., Any], compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setattr(wave_prefill, "compiled", lambda: False)
    step = make_step(3, (400, 300))
    for segment in step.segments:
        segment.coarse.spreads[:, 0] = 1e5
    q = step.q[:, None] + torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(1))
    rules = Blocks(tokens=4, descend=0.1, retrieved=0.05)
    out, lse = wave_prefill_reference(q, torch.zeros(4, 12), step.segments, rules, scale=0.25)
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse).all()
