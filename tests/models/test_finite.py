"""Keys and values that are not finite are named, never attended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retrolocal.cache import DenseCache
from retrolocal.errors import NumericsError
from retrolocal.models.config import read_config
from retrolocal.models.finite import FiniteWatch, require_finite
from retrolocal.models.weights import load_decoder


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["key", "value"])
def test_the_place_is_named(which: str, wrong: float) -> None:
    rows = {"key": torch.randn(2, 5, 8), "value": torch.randn(2, 5, 8)}
    positions = torch.arange(100, 105)
    require_finite(rows["key"], rows["value"], positions, 3)
    rows[which][1, 4, 7] = wrong
    with pytest.raises(NumericsError, match=f"layer 3, KV head 1, position 104: the {which} is"):
        require_finite(rows["key"], rows["value"], positions, 3)


@pytest.mark.parametrize("which", [0, 1])
def test_a_watch_tells_one_pass_late(which: int) -> None:
    watch, positions = FiniteWatch(3, torch.device("cpu")), torch.arange(100, 105)

    def a_pass(wrong: float = 0.0, *, wait: bool = False) -> None:
        watch.begin()
        for layer in range(3):
            rows = [torch.randn(2, 5, 8), torch.randn(2, 5, 8)]
            rows[which][1, 4, 7] += wrong if layer == 1 else 0.0
            watch.note(rows[0], rows[1], positions, layer)
        watch.ended(positions, wait=wait)

    message = f"layer 1, positions 100 to 104: a {('key', 'value')[which]} is not finite"
    a_pass()
    a_pass(float("inf"))
    with pytest.raises(NumericsError, match=message):
        a_pass()
    a_pass()
    with pytest.raises(NumericsError, match=message):
        a_pass(float("nan"), wait=True)


def test_a_model_on_a_gpu_is_watched(tiny_model: Path) -> None:
    """As there, on the CPU: no layer is asked, the pass as a whole is."""
    device = torch.device("cpu")
    config = read_config(tiny_model)
    decoder = load_decoder(tiny_model, config, dtype=torch.float32, device=device)
    decoder._watch_on(device)
    ids, positions = torch.arange(4), torch.arange(4)
    decoder(ids, positions, [DenseCache(), DenseCache()], 1)
    with torch.no_grad():
        decoder.layers[1].attention.value.weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="layer 1, positions 0 to 3: a value is not finite"):
        decoder(ids, positions, [DenseCache(), DenseCache()], 1)
