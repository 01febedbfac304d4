"""The whole program on a GPU: `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import retrolocal
from retrolocal.config import WaveConfig
from retrolocal.device_graph import GraphedModel
from retrolocal.models.config import read_config
from retrolocal.models.weights import load_decoder
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.store import PinnedStore

pytestmark = pytest.mark.gpu
CONFIG = WaveConfig(segment_tokens=256, growth_tokens=128, least=16, most=64, floor=4)


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    yield
    torch.cuda.synchronize()


@pytest.mark.parametrize("block_cache", [0, 1 << 22])
def test_replayed_steps_say_what_steps_say(tiny_model: Path, block_cache: int) -> None:
    """Through the growth of the context: segments are taken up while the graph stays."""
    device = torch.device("cuda")
    model = load_decoder(
        tiny_model,
        read_config(tiny_model),
        dtype=torch.bfloat16,
        device=device,
        progress=lambda done, total: None,
    )

    def caches() -> list[WaveCache]:
        return [
            WaveCache(CONFIG, PinnedStore(), layer=n, device=device, block_cache=block_cache)
            for n in range(2)
        ]

    eager, captured = caches(), caches()
    prompt = torch.arange(1200, device=device) * 37 % 250
    for held in (eager, captured):
        model(prompt, torch.arange(1200, device=device), held, 1)
    graphed = GraphedModel(model)
    for step in range(400):
        ids = torch.tensor([step * 11 % 250], device=device)
        positions = torch.tensor([1200 + step], device=device)
        expected = model(ids, positions, eager, 1)
        found = graphed(ids, positions, captured, 1)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert captured[0].statistics().clusters == eager[0].statistics().clusters
    assert graphed.captured <= 6


def test_the_built_in_model_quotes_on_a_gpu(tmp_path: Path) -> None:
    lines = [f"Entry {n} of the register names the colour {n * n % 977}." for n in range(900)]
    (tmp_path / "register.txt").write_text("\n".join(lines))
    said = []
    for device in ("cpu", "cuda"):
        session = retrolocal.load("builtin", cache="wave", device=device)
        question = "Entry 531 of the register names the"
        said.append(
            session.generate(
                question,
                files=[str(tmp_path / "register.txt")],
                temperature=0,
                max_new_tokens=8,
            )
        )
        session.close()
    assert said[0] == said[1]
    assert str(531 * 531 % 977)[:2] in said[1]
