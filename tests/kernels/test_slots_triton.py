"""Clusters that enter the block cache are copied whole, and nothing beside them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from retrolocal.kernels.slots import copy_clusters_reference
from retrolocal.kernels.slots_triton import copy_clusters_triton

pytestmark = [
    pytest.mark.usefixtures("triton_device"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(lengths=st.lists(st.integers(0, 1400), max_size=4), shift=st.integers(0, 3))
def test_copies_like_the_reference(
    triton_device: torch.device, lengths: list[int], shift: int
) -> None:
    """Any even length at any even address; slots keep a margin that stays as it was."""
    store = torch.randint(256, (6000,), dtype=torch.uint8, device=triton_device)
    arenas = [torch.full((8000,), 7, dtype=torch.uint8, device=triton_device) for _ in range(2)]
    for arena, copy in zip(arenas, (copy_clusters_triton, copy_clusters_reference), strict=True):
        sources, targets, at = [], [], 0
        for number, length in enumerate(lengths):
            sources.append(store.data_ptr() + 2 * shift + at)
            targets.append(arena.data_ptr() + 64 + 1900 * number)
            at += 2 * (length // 2)
        sizes = [2 * (length // 2) for length in lengths]
        device = triton_device if copy is copy_clusters_triton else torch.device("cpu")
        if device.type == "cpu" and arena.is_cuda:
            pytest.skip("the reference copies in the memory of the process")
        copy(
            *(torch.tensor(x, dtype=torch.int64, device=device) for x in (sources, targets, sizes))
        )
    assert torch.equal(*arenas)
