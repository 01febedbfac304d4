"""Keys and values that are not finite are named, never attended."""

from __future__ import annotations

import pytest
import torch

from retrolocal.errors import NumericsError
from retrolocal.models.attention import require_finite


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["key", "value"])
def test_the_place_is_named(which: str, wrong: float) -> None:
    rows = {"key": torch.randn(2, 5, 8), "value": torch.randn(2, 5, 8)}
    positions = torch.arange(100, 105)
    require_finite(rows["key"], rows["value"], positions, 3)
    rows[which][1, 4, 7] = wrong
    with pytest.raises(NumericsError, match=f"layer 3, KV head 1, position 104: the {which} is"):
        require_finite(rows["key"], rows["value"], positions, 3)
