"""What a text that is kept was computed with: the identity that its segments are named after."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .caches import is_clustered, may_be_clustered, wave_lengths
from .config import SessionConfig
from .library import Identity, file_digests
from .loading import weights_identity
from .models.config import ModelConfig
from .wave.lengths import never

NUMERICS = 4
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


class Provenance:
    """Of the texts that a session reads."""

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        config: SessionConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._model, self._config = model, config
        self._dtype, self._device = dtype, device
        self._session = _identity(folder, model, config, dtype, device)
        """Without what differs from text to text."""

    @property
    def wanted(self) -> Identity:
        """What a text that the library has was read with: whether it was clustered is as stored;
        so is the rest of how it was read, unless this session's is asked for by name."""
        if self._config.prefill == "auto":
            return replace(self._session, prefill=None)
        return replace(self._session, prefill=self._prefill(clustered=None))

    def reading(self, opening: str, tokens: int) -> Identity:
        """Of a text of so many tokens that is read now, with `opening` before its documents."""
        made = replace(self._session, prefix=opening)
        if not may_be_clustered(self._model, self._config, tokens):
            return made
        if is_clustered(self._model, self._config, self._dtype, self._device, tokens):
            return made
        return self.unclustered(made)

    def unclustered(self, identity: Identity) -> Identity:
        """The same for a text that is too short for the index."""
        return replace(identity, prefill=self._prefill(clustered=False))

    def _prefill(self, *, clustered: bool | None) -> dict[str, Any]:
        assert isinstance(self._session.prefill, dict)
        return self._session.prefill | {"clustered": clustered}


def _identity(
    folder: Path,
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> Identity:
    shape = _plain(asdict(model))
    rope = shape.pop("rope")
    wave, name = asdict(config.wave), str(dtype).removeprefix("torch.")
    return Identity(
        weights=weights_identity(folder, config.quant),
        model=shape,
        rope=rope,
        tokenizer=file_digests([folder / "tokenizer.json"]),
        dtype=name,
        clustering=None
        if config.cache == "dense"
        else _plain({key: wave[key] for key in CLUSTERING}),
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
