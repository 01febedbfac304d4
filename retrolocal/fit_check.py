"""Whether a model and documents fit, asked of the model's settings alone: no weights needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .chat import ChatTemplate
from .config import SessionConfig
from .conversation import Prompter
from .device import choose_device, choose_dtype
from .errors import ConfigError
from .head import Head, Heads
from .ingest.document import Document
from .memory import context_tokens, require_positions
from .models.config import read_config
from .models.json_reader import read_json
from .models.weights import declared_dtype
from .room import Room
from .tokenizer import Tokenizer


def require_fit(
    name: str, folder: Path, config: SessionConfig, documents: Sequence[Document] = ()
) -> None:
    """Raises ContextError or MemoryLimitError, with the plan that would do."""
    model = read_config(folder, ctx_size=config.ctx_size)
    head = head_of(folder, documents)
    positions = model.max_positions
    longest = context_tokens(config.ctx_size, positions, model=name)
    require_positions(len(head.ids) + bool(documents), longest, positions, model=name)
    device = choose_device(config)
    room = Room(
        name=name,
        model=model,
        config=config,
        dtype=choose_dtype(config, declared(folder), device),
        device=device,
        # Whether there is room on the disk for keys and values is asked when they are made.
        keeps=True,
    )
    room.require(head)


def head_of(folder: Path, documents: Sequence[Document]) -> Head:
    """The documents as the model would read them."""
    tokenizer = Tokenizer.open(folder)
    prompter = Prompter(tokenizer, ChatTemplate.open(folder, tokenizer))
    return Heads(prompter, None).of(documents)


def declared(folder: Path) -> torch.dtype:
    """The dtype of the weights that config.json tells."""
    return declared_dtype(read_json(folder / "config.json", ConfigError))
