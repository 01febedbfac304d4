"""`retrolocal eval quant`: what quantised weights do to a model's predictions.

The model reads the same tokens with its weights in bfloat16 and quantised. For every position the
Kullback-Leibler divergence sum p (log p - log q), in nats, of the distributions of the next token
says how much the quantised one differs (p in bfloat16, q quantised); beside it how often both have
the same likeliest token, and the perplexity of the text under each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from .. import library
from ..config import Quant
from ..errors import UsageError
from ..ingest.extract import read_document
from ..measurement import Progress, Result
from ..models.quantised import weight_bytes
from ..session import Session
from .options import QuantOptions

OWN_TEXT = Path(library.__file__).parent / "format.md"
"""Read when no file is named: it comes with the program."""
ROWS = 64
"""Positions that are compared at once."""


def run(options: QuantOptions, progress: Progress) -> Result:
    """Raises what opening the model and reading the text raises, UsageError for too short a one."""
    document = read_document(OWN_TEXT if options.file is None else options.file)
    exact: Tensor | None = None
    rows: list[Result] = []
    for quant in ("none", *options.quants):
        progress(f"reading the text with weights in {'bfloat16' if quant == 'none' else quant}")
        config = replace(options.session, quant=cast(Quant, quant), cache="dense")
        with Session.open(options.model, config) as session:
            ids = _ids(session, document.text, options.tokens)
            logits = session.logits(ids)
            row: Result = {
                "quant": quant,
                "weight_bytes": weight_bytes(session.model_config, session.dtype, quant)[0],
                "perplexity": perplexity(logits, ids),
            }
            about = {"device": session.device.type, "dtype": str(session.dtype)[6:]}
        if exact is None:
            exact = logits
        else:
            row |= compared(exact, logits)
        rows.append(row)
    name = OWN_TEXT.name if options.file is None else options.file
    return {"model": options.model, "file": name, "tokens": len(ids), **about, "results": rows}


def compared(exact: Tensor, other: Tensor) -> dict[str, float]:
    """Divergence of logits `other` from `exact`, float32 [T, vocabulary] each, over positions."""
    found = divergences(exact, other)
    ordered = found.sort().values
    return {
        "kl_mean": float(found.mean()),
        "kl_median": float(found.median()),
        "kl_p95": float(ordered[math.ceil(0.95 * len(ordered)) - 1]),
        "kl_max": float(ordered[-1]),
        "same_choice": float((exact.argmax(-1) == other.argmax(-1)).double().mean()),
    }


def divergences(exact: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each position, in nats: float64 [T], never below 0."""
    pairs = zip(torch.split(exact, ROWS), torch.split(other, ROWS), strict=True)
    return torch.cat([_divergence(one.double(), two.double()) for one, two in pairs])


def perplexity(logits: Tensor, ids: Sequence[int]) -> float:
    """Of tokens after the first; logits [T, vocabulary] of the positions that `ids` [T] have."""
    wanted = torch.tensor(ids[1:], device=logits.device)
    losses = [
        torch.nn.functional.cross_entropy(part.double(), number, reduction="sum")
        for part, number in zip(
            torch.split(logits[:-1], ROWS), torch.split(wanted, ROWS), strict=True
        )
    ]
    return math.exp(float(torch.stack(losses).sum()) / len(wanted))


def _divergence(exact: Tensor, other: Tensor) -> Tensor:
    log_p, log_q = exact.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def _ids(session: Session, text: str, tokens: int) -> list[int]:
    ids = session.tokenizer.encode(text)[:tokens]
    if len(ids) < 2:
        raise UsageError("the text has less than two tokens; give a longer one with -f")
    return ids
