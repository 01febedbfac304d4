"""The plan of a run: what a model and a text need under some settings, what of it fits, how long.

One arithmetic (`memory.estimate`) and one rule of what goes where (`memory.place`) serve the check
before every load (`room`), `retrolocal plan` and the advice in a refusal. `Planner`
tries settings and answers with `Plan`s. Loads no weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from .config import Quant, SessionConfig, StoreType
from .expected_time import decode_seconds, prefill_seconds
from .kernels.compiled import compiled
from .machine import Machine
from .memory import (
    COMPILER_BYTES,
    Limit,
    MemoryEstimate,
    answer_bytes,
    estimate,
    place,
)
from .models.config import ModelConfig
from .models.quantised import weight_bytes

KEPT_CHUNK = 1024
"""Tokens of a prompt behind a text that is kept, for an estimate of memory."""
FALLBACKS: tuple[tuple[Quant, StoreType], ...] = (
    ("none", "int8"),
    ("int8", "int8"),
    ("int4", "int8"),
    ("int4", "int4"),
)
"""Settings to try, the most faithful first."""

Where = Literal["memory", "file", "nowhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bytes at the peak, and seconds, of reading `tokens` and going on from there."""

    model: str
    tokens: int
    device: str
    quant: Quant
    store_type: StoreType
    cache_kind: str
    program: int
    """Python, PyTorch, compiled kernels and the text itself."""
    weights: int
    index: int
    store: int
    """Clustered keys and values."""
    cache: int
    """Keys and values in token order: dense layers and windows; a block cache over a file."""
    workspace: int
    """Activations of a piece of the prompt, clustering, the largest matrix while it is loaded."""
    loading_peak: int
    prefill_peak: int
    """Of the process, in memory; a store in a file is not part of it."""
    available: int
    """What the process may have."""
    store_in: Where
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    """For one token at the end of the text."""

    @property
    def total(self) -> int:
        return max(self.loading_peak, self.prefill_peak)

    @property
    def fits(self) -> bool:
        return self.store_in != "nowhere"

    @property
    def options(self) -> str:
        """As they are typed."""
        return f"--quant {self.quant} --store-type {self.store_type}"

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"total": self.total, "fits": self.fits}


class Planner:
    """Plans for one model on one device within a limit of memory."""

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        config: SessionConfig,
        dtype: torch.dtype,
        device: str,
        *,
        there: Limit,
        program: int,
        rates: Machine | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._config = config
        self._dtype = dtype
        self._device = device
        self._there = there
        self._program = program
        self._rates = rates

    def plan(
        self,
        tokens: int,
        quant: Quant | None = None,
        store_type: StoreType | None = None,
        *,
        kept: bool = False,
    ) -> Plan:
        """Under the settings of the session, or others."""
        config = replace(
            self._config,
            quant=quant or self._config.quant,
            wave=replace(self._config.wave, store_type=store_type or self._config.wave.store_type),
        )
        needed = needs(
            self._model, config, self._dtype, tokens, kept=kept, first=self._device == "cpu"
        )
        found = place(needed, self._there, self._program)
        in_file = found is not None and found.ram < needed.stored
        blocks = found.cache if found is not None and in_file else 0
        held = needed.cache - (needed.stored if in_file else 0) + blocks
        reading = self._program + needed.weights + held + needed.workspace
        plan = Plan(
            model=self._name,
            tokens=tokens,
            device=self._device,
            quant=config.quant,
            store_type=config.wave.store_type,
            cache_kind=config.cache,
            program=self._program,
            weights=needed.weights,
            index=needed.index,
            store=needed.stored,
            cache=needed.cache - needed.index - needed.stored + blocks,
            workspace=needed.workspace,
            loading_peak=self._program + needed.weights + needed.loading,
            prefill_peak=reading,
            available=self._there.bytes,
            store_in="nowhere" if found is None else "file" if in_file else "memory",
        )
        if self._rates is None:
            return plan
        return replace(
            plan,
            prefill_seconds=prefill_seconds(self._model, config, tokens, self._rates),
            decode_seconds=decode_seconds(self._model, config, self._dtype, tokens, self._rates),
        )

    def best(self, tokens: int) -> Plan | None:
        """The most faithful setting with which everything is in memory, else with a file."""
        plans = [self.plan(tokens, *settings) for settings in FALLBACKS]
        for where in ("memory", "file"):
            for plan in plans:
                if plan.store_in == where:
                    return plan
        return None

    def longest(self) -> Plan | None:
        """The longest text that fits under the smallest settings; None when nothing does."""
        least, most = 0, self._model.max_positions
        if not self.plan(1, *FALLBACKS[-1]).fits:
            return None
        while least + 1 < most:
            middle = (least + most) // 2
            fits = self.plan(middle, *FALLBACKS[-1]).fits
            least, most = (middle, most) if fits else (least, middle)
        return self.plan(max(1, least // 1000 * 1000), *FALLBACKS[-1])

    def advice(self, tokens: int) -> str:
        """What would fit in place of what does not, as words to add to a refusal."""
        best = self.best(tokens)
        if best is not None:
            where = "with its keys and values in a file" if best.store_in == "file" else ""
            return f"{best.options} would take {self._there.beside(best.total)[0]} {where}".rstrip()
        longest = self.longest()
        if longest is None:
            return "nothing of this model fits; retrolocal plan shows what others need"
        return f"at most {longest.tokens:,} tokens fit, with {longest.options}"


def gpu_limit(device: torch.device) -> Limit:
    """Memory of a GPU that this process has or can get."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return Limit(free + torch.cuda.memory_reserved(device), "{} are free", free)


def needs(
    model: ModelConfig,
    config: SessionConfig,
    dtype: torch.dtype,
    tokens: int,
    *,
    kept: bool,
    first: bool,
) -> MemoryEstimate:
    """Of loading the model and reading `tokens`; what is `kept` is not read in chunks.

    `first`: of a program on a CPU that has loaded no compiled code. It does with the first answer,
    unless it has to look at clusters before: what a text takes for a moment is over then.
    """
    total, largest = weight_bytes(model, dtype, config.quant)
    chunk_tokens = min(config.batch_size, KEPT_CHUNK) if kept else config.batch_size
    wave = None if config.cache == "dense" else config.wave
    needed = estimate(
        model,
        weight_bytes=total,
        loading=largest,
        element_bytes=dtype.itemsize,
        tokens=tokens,
        chunk_tokens=chunk_tokens,
        wave=wave,
    )
    whole = any(layer.window is None for layer in model.layers[:-1])
    looks = wave is not None and tokens > chunk_tokens and whole
    if first and compiled() and not looks:
        least = answer_bytes(model, tokens=tokens, wave=wave)
        needed = replace(needed, workspace=max(least, needed.workspace - COMPILER_BYTES))
    return needed
