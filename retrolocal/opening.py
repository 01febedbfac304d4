"""`retrolocal.load`: a session by keyword arguments."""

from __future__ import annotations

from typing import Literal, cast

import torch

from .config import (
    CacheKind,
    Device,
    DtypeName,
    PrefillKind,
    Quant,
    Scheme,
    SessionConfig,
    StoreType,
    WaveConfig,
)
from .room import ram_bytes
from .session import Session


def load(
    model: str = "builtin",
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    cache: str = "auto",
    scheme: str = "wave",
    budget: float | Literal["auto"] = "auto",
    prefill: str = "auto",
    quant: str | None = None,
    store_type: str = "bf16",
    ctx_size: int = 0,
    batch_size: int = 8192,
    threads: int = 0,
    ram: int | str = 0,
    revision: str | None = None,
    offline: bool = False,
) -> Session:
    """Opens a model: a folder, a Hub id (`org/name[@revision]`) or `builtin`.

    The settings are those of `SessionConfig` and `WaveConfig` (`ram` may be spelt "4G"); raises
    UsageError for a value that makes no sense and what `Session.open` raises.
    """
    config = SessionConfig(
        device=cast(Device, device),
        dtype=cast(DtypeName, str(dtype).removeprefix("torch.")),
        cache=cast(CacheKind, cache),
        wave=WaveConfig(
            scheme=cast(Scheme, scheme),
            budget=None if budget == "auto" else budget,
            store_type=cast(StoreType, store_type),
        ),
        prefill=cast(PrefillKind, prefill),
        quant=cast(Quant, quant or "none"),
        ctx_size=ctx_size,
        batch_size=batch_size,
        threads=threads,
        ram=ram_bytes(ram),
        revision=revision,
        offline=offline,
    )
    return Session.open(str(model), config)
