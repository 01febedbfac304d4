"""A model to be timed: what its files say, whether it fits, and its decoder.

The decoder has the weights of a checkpoint or, to time an architecture of which only config.json
is there, random ones. Everything that can be refused is refused before weights are made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import loading
from ..config import Quant
from ..device import choose_dtype, open_device
from ..errors import ConfigError, ContextError, ModelError
from ..hub import resolve_model
from ..measurement import Progress
from ..memory import MemoryEstimate, available_bytes, estimate, require
from ..models.config import ModelConfig, parse_config, read_config
from ..models.decoder import Decoder
from ..models.json_reader import read_json
from ..models.quantised import quantise_decoder, weight_bytes
from ..models.weights import checkpoint_dtype, declared_dtype
from ..paths import builtin_model
from .options import SpeedOptions

BLOCK = 1_048_583
"""Random numbers that are repeated through all weights; a prime, so that no two rows are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedModel:
    name: str
    folder: Path | None
    """Of the checkpoint; None: random weights."""
    config: ModelConfig
    dtype: torch.dtype
    """Of weights and caches."""
    device: torch.device
    quant: Quant
    parameters: int

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(self.config, self.dtype, self.quant)[0]


def find_model(options: SpeedOptions, progress: Progress) -> TimedModel:
    """Reads what is small; raises ModelError and UsageError."""
    session = options.session
    folder = None
    if options.random_weights:
        reader = read_json(_config_file(options.model), ConfigError)
        config, stored = parse_config(reader), declared_dtype(reader)
    else:
        folder = resolve_model(
            options.model,
            revision=session.revision,
            offline=session.offline,
            progress=progress,
        )
        config = read_config(folder)
        stored = checkpoint_dtype(folder, config)
    device = open_device(session)
    with torch.device("meta"):
        parameters = sum(value.numel() for value in Decoder(config).parameters())
    return TimedModel(
        name=_short_name(options.model),
        folder=folder,
        config=config,
        dtype=choose_dtype(session, stored, device),
        device=device,
        quant=session.quant,
        parameters=parameters,
    )


def require_room(model: TimedModel, options: SpeedOptions) -> None:
    """Raises ContextError or MemoryLimitError, with both figures, for the deepest test."""
    depth = max(options.depths)
    new = max(prompt + gen for prompt, gen in options.tests)
    if depth + new > model.config.max_positions:
        raise ContextError(
            f"{new:,} tokens at depth {depth:,} make {depth + new:,} and {model.name} has "
            f"positions for {model.config.max_positions:,}: give a smaller --n-depth"
        )
    if model.device.type == "cpu":
        for kind in options.caches:
            needed = needed_memory(model, options, depth, new, wave=kind != "dense")
            require(needed, model=model.name, tokens=depth + new)


def fit_beside(model: TimedModel, options: SpeedOptions) -> bool:
    """Whether the caches of all kinds fit into memory at once, at the deepest test."""
    if model.device.type != "cpu":
        return len(options.caches) == 1
    depth, new = max(options.depths), max(prompt + gen for prompt, gen in options.tests)
    needed = [
        needed_memory(model, options, depth, new, wave=kind != "dense") for kind in options.caches
    ]
    caches, most = sum(one.cache for one in needed), max(one.workspace for one in needed)
    if options.in_file is not None:
        # Behind a file there is a block cache, of each of the two ways to read ahead.
        caches += int(2 * options.in_file / 100 * max(one.cache for one in needed))
    return model.weight_bytes + caches + most <= available_bytes()


def needed_memory(
    model: TimedModel, options: SpeedOptions, depth: int, new: int, *, wave: bool
) -> MemoryEstimate:
    """Of a run with `new` tokens after `depth`: its synthetic keys and values are workspace."""
    element = model.dtype.itemsize
    run = estimate(
        model.config,
        weight_bytes=model.weight_bytes,
        element_bytes=element,
        tokens=depth + new,
        chunk_tokens=min(new, options.session.batch_size),
        wave=options.session.wave if wave else None,
    )
    # Keys and values of all heads, and about eight float32 arrays while one head is drawn.
    synthetic = depth * model.config.head_dim * (2 * model.config.kv_heads * element + 8 * 4)
    return dataclasses.replace(run, workspace=run.workspace + synthetic)


def open_decoder(model: TimedModel, options: SpeedOptions, progress: Progress) -> Decoder:
    """Loads or draws the weights; raises WeightsError."""
    gib = model.weight_bytes / 2**30
    if model.folder is None:
        progress(f"drawing {gib:.2f} GiB of random weights")
        decoder = random_decoder(model, options.seed)
        quantise_decoder(decoder, model.quant)
        return decoder
    progress(f"loading {gib:.2f} GiB of weights")
    return loading.open_decoder(
        model.folder, model.config, dtype=model.dtype, device=model.device, quant=model.quant
    )


def random_decoder(model: TimedModel, seed: int) -> Decoder:
    """Matrices of variance 1 / columns, biases of 0 and norms of 1; the same for the same seed."""
    with torch.device("meta"):
        decoder = Decoder(model.config).to(model.dtype)
    decoder.to_empty(device=model.device).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(BLOCK, generator=generator).to(model.device)
    for name, value in decoder.named_parameters():
        if value.dim() == 1:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        turn = int(torch.randint(BLOCK, (1,), generator=generator))
        _repeat(value.view(-1), block.roll(turn) * value.shape[1] ** -0.5)
    return decoder.eval()


def _repeat(target: Tensor, block: Tensor) -> None:
    """Fills target [N] with block [M] again and again."""
    whole = target.shape[0] // block.shape[0] * block.shape[0]
    target[:whole].view(-1, block.shape[0]).copy_(block)
    target[whole:] = block[: target.shape[0] - whole]


def _config_file(name: str) -> Path:
    path = builtin_model() if name == "builtin" else Path(name).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{path}: no such file; --weights random needs a config.json, or its folder"
        )
    return path


def _short_name(name: str) -> str:
    """The last part of a path; a Hub id and `builtin` as they are."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve().parent.name if path.name == "config.json" else path.stem
    return path.resolve().name if path.is_dir() else name
