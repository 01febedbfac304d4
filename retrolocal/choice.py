"""The recommended models as a table: what each takes, which fit here, which one would answer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .amounts import size
from .config import SessionConfig, StoreType
from .default_model import SHARE, DefaultModel, default_model, is_here
from .device import gpu_bytes
from .measurement import table
from .memory import machine_bytes
from .recommended import RECOMMENDED, USUAL_TOKENS, WORKSPACE, that_fit

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recommended model on the machine that is asked about."""

    model: str
    what: str
    licence: str
    gated: bool
    parameters: int
    download_bytes: int
    kv_bytes_per_token: int
    max_tokens: int
    tokens: int
    """Of the text that is counted with: a long book, or as many as the model has positions for."""
    total_bytes: int
    """Weights in bfloat16, that text and the work."""
    fits: bool
    here: bool
    """Whether it is in the Hub's cache."""


def rows(memory_bytes: int, gpu: int | None, store_type: StoreType) -> list[Row]:
    """Of all recommended models, the best answers first."""
    fitting = set(that_fit(memory_bytes, gpu_bytes=gpu, store_type=store_type))
    return [
        Row(
            model=one.model,
            what=one.what,
            licence=one.licence,
            gated=one.gated,
            parameters=one.parameters,
            download_bytes=one.weight_bytes,
            kv_bytes_per_token=one.kv_bytes_per_token,
            max_tokens=one.max_tokens,
            tokens=(tokens := min(USUAL_TOKENS, one.max_tokens)),
            total_bytes=one.weight_bytes + WORKSPACE + one.context_bytes(tokens, store_type),
            fits=one in fitting,
            here=is_here(one),
        )
        for one in RECOMMENDED
    ]


def shown(ram: int | None, vram: float | None, config: SessionConfig, *, as_json: bool) -> str:
    """The table, and which model answers when none is chosen, as text or as one JSON object.

    `ram` bytes and `vram` GiB stand for those of another machine; None or 0: of this one.
    """
    gpu = gpu_bytes(config) if vram is None else int(vram * GIB)
    memory = ram or machine_bytes()
    usable = int(memory * SHARE)
    found = rows(usable, None if gpu is None else int(gpu * SHARE), config.wave.store_type)
    chosen = default_model(gpu_bytes=gpu_bytes(config))
    if as_json:
        facts = {
            "memory_bytes": memory,
            "gpu_bytes": gpu,
            "models": [asdict(row) for row in found],
            "default": chosen.model,
            "note": chosen.note,
        }
        return json.dumps(facts)
    return "\n".join(_lines(found, memory, gpu, chosen))


def _lines(found: list[Row], memory: int, gpu: int | None, chosen: DefaultModel) -> list[str]:
    cells = [
        (
            f"{row.model} (gated)" if row.gated else row.model,
            row.what,
            size(row.download_bytes),
            f"{row.kv_bytes_per_token >> 10} KiB",
            f"{row.max_tokens:,}",
            f"{size(row.total_bytes)} ({row.tokens:,})",
            "yes" if row.fits else "no",
            "yes" if row.here else "",
        )
        for row in found
    ]
    names = ("model", "", "download", "per token", "longest text", "with a text", "fits", "here")
    there = f"{size(memory)} of memory" + ("" if gpu is None else f", {size(gpu)} on the GPU")
    return [
        *table(names, cells, left=2),
        "",
        f"fits: in {SHARE:.0%} of {there}, weights in bfloat16, beside a text of so many tokens.",
        f"{chosen.note[0].upper()}{chosen.note[1:]}.",
        "A plan for one of them and a text: retrolocal plan -m MODEL -f FILE | --tokens N",
    ]
