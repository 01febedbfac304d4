"""What a text that is kept was computed with: the identity that its segments are named after."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .caches import wave_lengths
from .config import SessionConfig
from .library import Identity, file_digests
from .loading import weights_identity
from .models.config import ModelConfig
from .wave.lengths import never

NUMERICS = 2
"""Raised whenever the program begins to compute keys, values or clusters differently."""
CLUSTERING = (
    "scheme",
    "segment_tokens",
    "cluster_tokens",
    "group_clusters",
    "iterations",
    "outlier_fraction",
    "sink_tokens",
    "window_tokens",
    "growth_tokens",
)
"""Settings of WaveConfig that change what is kept; the others change what a query reads."""
READING = ("prefill_descend", "prefill_cap")
"""Those that change it when a text is read through the index."""


def identity(
    folder: Path,
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> Identity:
    """Of what a session reads now; its prefix is left open."""
    shape = _plain(asdict(model))
    rope = shape.pop("rope")
    wave, name = asdict(config.wave), str(dtype).removeprefix("torch.")
    clustered = config.cache != "dense"
    return Identity(
        weights=weights_identity(folder, config.quant),
        model=shape,
        rope=rope,
        tokenizer=file_digests([folder / "tokenizer.json"]),
        dtype=name,
        clustering=_plain({key: wave[key] for key in CLUSTERING}) if clustered else None,
        codec={"store": config.wave.store_type, "index": config.wave.index_type},
        numerics=NUMERICS,
        prefill=_prefill(model, config, dtype, device),
    )


def _prefill(
    model: ModelConfig, config: SessionConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    first = wave_lengths(model, config, dtype, device).prefill() if _through_index(config) else None
    if first is None or first >= never():
        return {"kind": "dense"}
    wave = asdict(config.wave)
    return {"kind": "wave", "from_tokens": first} | {name: wave[name] for name in READING}


def _through_index(config: SessionConfig) -> bool:
    return config.cache != "dense" and config.prefill == "wave"


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))
