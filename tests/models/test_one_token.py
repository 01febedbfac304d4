"""A decode step in 16 bits on a CPU goes through compiled code, and its logits are PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retrolocal.cache import DenseCache
from retrolocal.kernels import linear
from retrolocal.models.config import read_config
from retrolocal.models.weights import load_decoder

pytest.importorskip("numba")

CPU = torch.device("cpu")
SIZES = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 192}


def stepped(decoder: Any, tokens: int = 24, steps: int = 6) -> Tensor:
    """Log-probabilities [steps, vocabulary] of single tokens after a prompt."""
    caches = [DenseCache() for _ in decoder.layers]
    ids, positions = torch.arange(tokens + steps) * 7 % 256, torch.arange(tokens + steps)
    decoder(ids[:tokens], positions[:tokens], caches, 0)
    rows = [
        decoder(ids[at : at + 1], positions[at : at + 1], caches, 1)
        for at in range(tokens, tokens + steps)
    ]
    return torch.cat(rows).log_softmax(-1)


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_of_a_step(
    family: str, quant: str, make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(family, **SIZES).folder
    config = read_config(folder)
    decoder = load_decoder(folder, config, dtype=torch.bfloat16, device=CPU, quant=quant)
    exact = stepped(load_decoder(folder, config, dtype=torch.float32, device=CPU, quant=quant))
    with monkeypatch.context() as patched:
        for module in ("compiled", "linear"):
            patched.setattr(f"retrolocal.kernels.{module}.compiled", lambda: False)
        plain = stepped(decoder)
    monkeypatch.setattr(linear, "SMALLEST", 1)
    reference = linear.linears_reference

    def of_many_tokens(x: Tensor, pairs: Any) -> list[Tensor]:
        assert x.shape[0] != 1, "PyTorch was asked"
        return reference(x, pairs)

    monkeypatch.setattr(linear, "linears_reference", of_many_tokens)
    compiled = stepped(decoder)
    # As far from float32 as PyTorch's bfloat16 is, and no farther.
    assert (compiled - exact).abs().max() <= 1.5 * (plain - exact).abs().max()
    assert not torch.equal(plain, exact)
