"""What an approximation of attention does to its output, against dense attention in float64.

`build_index` clusters keys as a wave cache does; `exact_attention` is the reference; `compare`
runs decode steps through an index and measures them. Errors are relative to the length of the
exact output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import WaveConfig
from .errors import UsageError
from .wave.clustering import cluster_segment
from .wave.index import WaveIndex
from .wave.zones import fewest_tokens, next_growth

Steady = tuple[Tensor, Tensor]
"""K and V [Hkv, n, D] of the tokens that are always attended exactly."""


@dataclass(frozen=True, slots=True)
class Measured:
    """S steps of Hq query heads over Hkv KV heads."""

    relative_error: Tensor
    """float64 [S, Hq]."""
    mass_exact: Tensor
    """float64 [S, Hq]: the true share of the mass that was attended exactly."""
    mass_estimated: Tensor
    """float64 [S, Hq]: what the step itself believed was left to estimation."""
    retrieved_tokens: Tensor
    """float64 [S, Hkv]."""
    bytes: Tensor
    """float64 [S]: of index and store, read by all heads."""


def build_index(k: Tensor, v: Tensor, config: WaveConfig) -> tuple[WaveIndex, Steady]:
    """Clusters all of k, v [Hkv, N, D] but sinks and window, as a document that was read."""
    index, end = WaveIndex(config), config.sink_tokens
    while (span := next_growth(k.shape[1], end, config)) is not None:
        rows = slice(span.start, span.stop)
        index.append(cluster_segment(k[:, rows], v[:, rows], config)[0])
        end = span.stop
    keep = torch.cat((torch.arange(min(config.sink_tokens, end)), torch.arange(end, k.shape[1])))
    return index, (k[:, keep].contiguous(), v[:, keep].contiguous())


def require_clustered(tokens: int, text: str | None = None) -> None:
    """Raises UsageError for fewer tokens than are clustered: --tokens of them, or all of `text`."""
    needed = fewest_tokens(WaveConfig())
    if tokens >= needed:
        return
    if text is None:
        raise UsageError(
            f"--tokens is {tokens:,} and nothing is clustered below {needed:,}: give at least that"
        )
    raise UsageError(
        f"{text} has {tokens:,} tokens and nothing is clustered below {needed:,}: "
        "give a longer text"
    )


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q [Hq, D] over k, v [Hkv, N, D]: out [Hq, D] and lse [Hq] in float64, a KV head at a time."""
    outs, lses = [], []
    for own, keys, values in zip(q.double().chunk(k.shape[0]), k, v, strict=True):
        scores = own @ keys.double().T / math.sqrt(q.shape[1])
        lse = torch.logsumexp(scores, dim=1)
        outs.append(torch.exp(scores - lse[:, None]) @ values.double())
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def compare(
    q: Tensor, k: Tensor, v: Tensor, config: WaveConfig, *, index: WaveIndex, steady: Steady
) -> Measured:
    """Steps q [S, Hq, D] over k, v [Hkv, N, D] through `build_index` of the same config."""
    errors, exact, believed, tokens, read = [], [], [], [], []
    for step in q:
        truth, whole = exact_attention(step, k, v)
        answer = index.answer(step, steady)
        distance = (answer.out.double() - truth).norm(dim=1)
        errors.append(distance / truth.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny))
        # mass_exact is relative to the estimated whole: the exact part's log mass is known.
        exact.append(torch.exp(answer.lse_exact.double() - whole))
        believed.append(answer.mass_estimated.double())
        tokens.append(answer.retrieved_tokens.double())
        read.append(float(answer.bytes if isinstance(answer.bytes, int) else answer.bytes.sum()))
    return Measured(
        relative_error=torch.stack(errors).cpu(),
        mass_exact=torch.stack(exact).cpu(),
        mass_estimated=torch.stack(believed).cpu(),
        retrieved_tokens=torch.stack(tokens).cpu(),
        bytes=torch.tensor(read, dtype=torch.float64),
    )
