"""What the decoder promises besides the right numbers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from retrolocal.errors import Interrupted
from retrolocal.models import ModelConfig, read_config
from retrolocal.models.decoder import Decoder


@pytest.fixture
def config(write_config: Any) -> ModelConfig:
    return read_config(write_config(num_hidden_layers=3))


@pytest.fixture
def decoder(config: ModelConfig) -> Decoder:
    return drawn(config)


def drawn(config: ModelConfig) -> Decoder:
    """With random weights."""
    torch.manual_seed(0)
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return decoder


IDS = torch.tensor([5, 130, 0, 7, 7, 9])


@pytest.mark.parametrize("wanted", [0, 1, 4, 6])
def test_wanted_logits_are_the_last_of_all(
    wanted: int, decoder: Decoder, config: ModelConfig, make_caches: Any
) -> None:
    every = decoder(IDS, torch.arange(6), make_caches(config), 6)
    caches = make_caches(config)
    some = decoder(IDS, torch.arange(6), caches, wanted)
    assert some.shape == (wanted, 131)
    torch.testing.assert_close(some, every[6 - wanted :])
    assert [cache.tokens for cache in caches] == [6, 6, 6]
    assert [cache.asked for cache in caches] == [[6], [6], [wanted]]


def test_a_prompt_without_logits_leaves_the_same_caches(
    decoder: Decoder, config: ModelConfig, make_caches: Any
) -> None:
    every = decoder(IDS, torch.arange(6), make_caches(config), 6)
    caches = make_caches(config)
    decoder(IDS[:4], torch.arange(4), caches, 0)
    rest = decoder(IDS[4:], torch.arange(4, 6), caches, 2)
    torch.testing.assert_close(rest, every[4:])


def test_layers_are_announced_and_can_be_interrupted(
    decoder: Decoder, config: ModelConfig, make_caches: Any
) -> None:
    announced: list[int] = []
    decoder(IDS, torch.arange(6), make_caches(config), 1, on_layer=announced.append)
    assert announced == [0, 1, 2]

    def stop(layer: int) -> None:
        if layer == 1:
            raise Interrupted("stopped")

    caches = make_caches(config)
    with pytest.raises(Interrupted):
        decoder(IDS, torch.arange(6), caches, 1, on_layer=stop)
    assert [cache.tokens for cache in caches] == [6, 0, 0]


def test_no_gradient_is_recorded(decoder: Decoder, config: ModelConfig, make_caches: Any) -> None:
    caches = make_caches(config)
    logits = decoder(IDS, torch.arange(6), caches, 1)
    assert not logits.requires_grad
    assert not caches[0].keys[0].requires_grad
    assert not logits.is_inference(), "callers may change logits in place"


def test_casting_the_module_keeps_the_angles_exact(
    decoder: Decoder, config: ModelConfig, make_caches: Any
) -> None:
    def rotated_key(position: int) -> torch.Tensor:
        caches = [Spy() for _ in config.layers]
        decoder(IDS[:1], torch.tensor([position]), caches, 1)
        return caches[0].key.float()

    exact = rotated_key(2_000_003)
    decoder.bfloat16()
    error = (rotated_key(2_000_003) - exact).norm() / exact.norm()
    assert error < 0.02


class Spy:
    tokens = 0

    def attend(self, q: Any, k: Any, v: Any, positions: Any) -> torch.Tensor:
        self.key = k
        return torch.zeros_like(q)


def test_positions_are_not_looked_at_where_nothing_turns(write_config: Any) -> None:
    folder = write_config(
        model_type="smollm3",
        architectures=["SmolLM3ForCausalLM"],
        no_rope_layers=[0, 0],
        tie_word_embeddings=True,
    )
    decoder = drawn(read_config(folder))
    first, second = [Spy(), Spy()], [Spy(), Spy()]
    decoder(IDS, torch.arange(6), first, 6)
    decoder(IDS, torch.arange(6) + 1000, second, 6)
    assert torch.equal(first[1].key, second[1].key)


def test_wrong_calls_are_caught(decoder: Decoder, config: ModelConfig, make_caches: Any) -> None:
    with pytest.raises(AssertionError):
        decoder(IDS, torch.arange(6), make_caches(config), 7)
    with pytest.raises(AssertionError):
        decoder(IDS, torch.arange(6), make_caches(config)[:2], 1)


def test_a_decoder_without_weights_loads_no_compiler() -> None:
    """Every start makes one, to know the shapes."""
    code = (
        "import sys, torch; "
        "from retrolocal.hub import resolve_model; from retrolocal.models import read_config; "
        "from retrolocal.models.decoder import Decoder\n"
        "with torch.device('meta'): Decoder(read_config(resolve_model('builtin')))\n"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
