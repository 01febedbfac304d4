"""What reading a chunk takes beside weights and caches: the plan, and allocations counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrolocal.bench.all import CONFIG
from retrolocal.config import WaveConfig
from retrolocal.errors import ConfigError
from retrolocal.generate import prefill
from retrolocal.memory import GIB, chunk_bytes
from retrolocal.models.config import ModelConfig, parse_config
from retrolocal.models.decoder import Decoder
from retrolocal.models.json_reader import JsonReader
from retrolocal.wave.beside import Beside
from retrolocal.wave.cache import WaveCache
from retrolocal.wave.store import PinnedStore


class Counted(TorchDispatchMode):
    """Bytes of tensors that live, all storages made inside; `peak` since it was last set."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._live[StorageWeakRef(storage)] = storage.nbytes()

    @property
    def live(self) -> int:
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        return sum(self._live.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.add(tensor)
        self.peak = max(self.peak, self.live)
        return made


def shape(**changed: int) -> ModelConfig:
    config: ModelConfig = parse_config(JsonReader(CONFIG | changed, "config.json", ConfigError))
    return config


def test_a_million_tokens_of_a_7b_layer_take_less_than_3_gib() -> None:
    needed = chunk_bytes(
        shape(),
        tokens=1 << 20,
        chunk_tokens=8192,
        element_bytes=2,
        wave=WaveConfig(store_type="int8"),
    )
    assert 1.5 * GIB < needed < 3 * GIB


@pytest.mark.parametrize("store_type", ["bf16", "int8"])
def test_a_chunk_takes_no_more_than_planned(store_type: str) -> None:
    """An eighth of the shape of Qwen2.5-7B, at a context of four chunks: counted as allocated."""
    config = shape(
        hidden_size=448,
        intermediate_size=2368,
        head_dim=16,
        num_hidden_layers=3,
        vocab_size=2048,
    )
    wave = WaveConfig(segment_tokens=512, iterations=2, store_type=store_type)  # type: ignore[arg-type]
    model = Decoder(config).to(torch.bfloat16).requires_grad_(False)
    device = torch.device("cpu")
    stores = [PinnedStore(pinned=False) for _ in config.layers]
    caches = [
        WaveCache(wave, store, beside=Beside(device), ahead=Beside(device)) for store in stores
    ]
    ids = torch.arange(5 * 512) * 37 % 2048
    for _ in prefill(model, caches, ids[: 4 * 512], 0, chunk_tokens=512):
        pass
    with Counted() as counted:
        arenas = [arena for store in stores for arena in store._arenas]
        for there in (*model.parameters(), *arenas):
            counted.add(there)
        for _ in prefill(model, caches, ids[4 * 512 :], 4 * 512, chunk_tokens=512):
            pass
        held = counted.live
    planned = chunk_bytes(config, tokens=len(ids), chunk_tokens=512, element_bytes=2, wave=wave)
    # What the chunk leaves in the caches is not of its reading.
    assert planned / 4 < counted.peak - held < planned
