"""Decoders with quantised matrices: which are, how far the logits move, what loading takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retrolocal.errors import WeightsError
from retrolocal.models.config import read_config
from retrolocal.models.quantised import matrices, weight_bytes
from retrolocal.models.quantised_file import read_quantised, write_quantised
from retrolocal.models.weights import load_decoder

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 192,
    "initializer_range": 0.05,
}
LARGEST_KL = {"int8": 2e-4, "int4": 0.05}
"""Nats per token: mean KL of the logits to those of the weights in bfloat16."""


def loaded(folder: Path, quant: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    return load_decoder(folder, read_config(folder), dtype=dtype, device=CPU, quant=quant)


def logits(decoder: Any, make_caches: Any, count: int = 40) -> torch.Tensor:
    ids = torch.arange(count) * 7 % 256
    answer: torch.Tensor = decoder(ids, torch.arange(count), make_caches(decoder.config), count)
    return answer.log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_logits_stay_close(
    family: str, tied: bool, quant: str, make_checkpoint: Any, make_caches: Any
) -> None:
    folder = make_checkpoint(family, **SIZES, tie_word_embeddings=tied).folder
    whole = logits(loaded(folder, "none"), make_caches)
    decoder = loaded(folder, quant)
    named = dict(matrices(decoder))
    assert ("head.weight" in named) != tied
    assert named["embedding.weight"].bits == 8
    assert named["layers.1.mlp.down.weight"].bits == int(quant[3:])
    moved = logits(decoder, make_caches)
    kl = (whole.exp() * (whole - moved)).sum(-1).mean()
    assert kl <= LARGEST_KL[quant]
    assert not torch.equal(whole, moved)


def test_a_matrix_whose_shape_does_not_fit_stays_whole(
    make_checkpoint: Any, make_caches: Any
) -> None:
    folder = make_checkpoint("llama").folder
    assert not list(matrices(loaded(folder, "int4")))
    whole = logits(loaded(folder, "none"), make_caches, 18)
    assert torch.equal(logits(loaded(folder, "int4"), make_caches, 18), whole)


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bytes_are_as_announced(quant: str, dtype: torch.dtype, make_checkpoint: Any) -> None:
    folder = make_checkpoint("qwen2", **SIZES).folder
    decoder = loaded(folder, quant, dtype)
    held = [p for p in decoder.parameters()]
    held += [t for _, m in matrices(decoder) for t in (*m.planes, *m.scales)]
    assert sum(t.nbytes for t in held) == weight_bytes(decoder.config, dtype, quant)[0]


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_what_was_written_is_read(
    quant: str, make_checkpoint: Any, make_caches: Any, tmp_path: Path
) -> None:
    folder = make_checkpoint("qwen2", **SIZES).folder
    decoder, file = loaded(folder, quant), tmp_path / "deep" / "weights.safetensors"
    write_quantised(decoder, file)
    load_file(file)
    again = read_quantised(file, decoder.config, quant, dtype=torch.bfloat16, device=CPU)
    assert torch.equal(logits(decoder, make_caches), logits(again, make_caches))
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("keep", [0, 5, 200, -1], ids=str)
def test_a_file_that_was_cut_is_refused(keep: int, make_checkpoint: Any, tmp_path: Path) -> None:
    folder = make_checkpoint("llama", **SIZES).folder
    decoder, file = loaded(folder, "int4"), tmp_path / "weights.safetensors"
    write_quantised(decoder, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError):
        read_quantised(file, decoder.config, "int4", dtype=torch.bfloat16, device=CPU)


PEAK = """
import sys
from pathlib import Path
import threading, torch
from retrolocal.models.config import read_config
from retrolocal.models.quantised import weight_bytes
from retrolocal.models.weights import load_decoder
torch.set_num_threads(1)
folder, quant = Path(sys.argv[1]), sys.argv[2]
config = read_config(folder)

def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

# What PyTorch imports at its first work is no part of the weights.
weight_bytes(config, torch.bfloat16, quant)
torch.aminmax(torch.randn(64, 64).bfloat16() @ torch.randn(64, 64).bfloat16())
before, peak, ended = private(), [0], threading.Event()

def watch():
    while not ended.wait(0.001):
        peak[0] = max(peak[0], private())

watcher = threading.Thread(target=watch)
watcher.start()
decoder = load_decoder(
    folder, config, dtype=torch.bfloat16, device=torch.device("cpu"), quant=quant
)
ended.set()
watcher.join()
print(max(peak[0], private()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_loading_takes_no_more_than_the_weights_and_one_layer(
    quant: str, make_checkpoint: Any
) -> None:
    sizes = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 4096}
    made = make_checkpoint("llama", **sizes, num_attention_heads=16, num_hidden_layers=3)
    folder = made.folder
    halve(folder / "model.safetensors")
    total, largest = weight_bytes(read_config(folder), torch.bfloat16, quant)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), quant], capture_output=True, text=True, check=True
    )
    # Unquantised weights stay in the mapped file.
    layer = 4 * 1024 * 1024 * 2 + 3 * 1024 * 4096 * 2
    assert largest <= layer
    bound = layer if quant == "none" else total + layer
    assert int(done.stdout) <= bound


def halve(file: Path) -> None:
    """Float32 tensors to bfloat16."""
    from safetensors.torch import save_file

    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file)
