"""Logits to the next token: penalties, top-k, top-p, min-p, temperature, draw.

Order and meaning are llama.cpp's: the temperature comes last, so top-p and min-p judge the
probabilities the model gave. The same seed and the same logits give the same tokens on every
device. Knows no model and no tokenizer.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import SamplingConfig
from .errors import ModelError

# NumPy and not torch: these are many small steps, and torch would wake all its threads for each.
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Sampler:
    """Draws tokens and remembers them for the penalties. One reply, one thread."""

    def __init__(self, config: SamplingConfig, prompt_ids: Sequence[int] = ()) -> None:
        self.seed: int = secrets.randbits(32) if config.seed == -1 else config.seed % 2**32
        """The seed in use; giving it again repeats the draws."""
        self._config = config
        self._generator = torch.Generator().manual_seed(self.seed)
        self._recent = _Recent(config.repeat_last_n if _has_penalties(config) else 0)
        self._recent.extend(prompt_ids)

    def __call__(self, logits: Tensor) -> int:
        """The next token id from float32 logits [vocab].

        Raises ModelError when the logits are not numbers to choose by.
        """
        scores: Floats = logits.detach().to("cpu", torch.float32).numpy()
        _check(scores)
        if self._recent.counts:
            scores = _penalized(scores, self._recent.counts, self._config)
        token = int(scores.argmax()) if self._config.temperature == 0 else self._draw(scores)
        self._recent.add(token)
        return token

    def _draw(self, scores: Floats) -> int:
        config = self._config
        ids = _top_k(scores, config.top_k)
        ids = _top_p(scores, ids, config.top_p)
        ids = _min_p(scores, ids, config.min_p)
        reached = _probabilities(scores[ids], config.temperature).cumsum()
        at = float(torch.rand(1, generator=self._generator, dtype=torch.float64)) * reached[-1]
        # Rounding may put the point on the very end, past which only impossible tokens lie.
        last = np.searchsorted(reached, reached[-1])
        return int(ids[min(np.searchsorted(reached, at, side="right"), last)])


def make_sampler(config: SamplingConfig, prompt_ids: Sequence[int] = ()) -> Sampler:
    """A sampler for one reply; the penalties see the end of `prompt_ids` too."""
    return Sampler(config, prompt_ids)


class _Recent:
    """How often each of the last n tokens occurred; n = -1 counts all."""

    def __init__(self, last: int) -> None:
        self.counts: Counter[int] = Counter()
        self._last = last
        self._window: deque[int] = deque()

    def extend(self, tokens: Sequence[int]) -> None:
        if self._last >= 0:
            tokens = tokens[max(0, len(tokens) - self._last) :]
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if self._last == 0:
            return
        self.counts[token] += 1
        if self._last < 0:
            return
        self._window.append(token)
        if len(self._window) > self._last:
            oldest = self._window.popleft()
            self.counts[oldest] -= 1
            if not self.counts[oldest]:
                del self.counts[oldest]


def _has_penalties(config: SamplingConfig) -> bool:
    return (config.repeat_penalty, config.frequency_penalty, config.presence_penalty) != (1, 0, 0)


def _check(scores: Floats) -> None:
    best = float(scores.max())
    if math.isnan(best):
        raise ModelError("the model answered NaN instead of logits; try another --dtype")
    if math.isinf(best):
        raise ModelError(f"the model's largest logit is {best}; try another --dtype")


def _penalized(scores: Floats, counts: Counter[int], config: SamplingConfig) -> Floats:
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    found = scores[ids]
    repeat = config.repeat_penalty
    found = np.where(found <= 0, found * repeat, found / repeat)
    scores = scores.copy()
    scores[ids] = found - times * config.frequency_penalty - config.presence_penalty
    return scores


def _top_k(scores: Floats, k: int) -> Ids:
    """Ids of the k largest scores, largest first, of equals the lowest id; else all as they are."""
    if k <= 0 or k >= len(scores):
        return np.arange(len(scores))
    least = torch.topk(torch.from_numpy(scores), k).values[-1].item()
    ids = np.flatnonzero(scores >= least)
    return ids[_descending(scores[ids])[:k]]


def _top_p(scores: Floats, ids: Ids, p: float) -> Ids:
    if p >= 1:
        return ids
    ids = ids[_descending(scores[ids])]
    reached = _probabilities(scores[ids]).cumsum()
    return ids[: int((reached < p).sum()) + 1]


def _min_p(scores: Floats, ids: Ids, p: float) -> Ids:
    if p <= 0:
        return ids
    chosen = scores[ids]
    likely: Ids = ids[chosen >= float(chosen.max()) + math.log(p)]
    return likely


def _descending(scores: Floats) -> Ids:
    order: Ids = np.argsort(-scores, kind="stable")
    return order


def _probabilities(scores: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    # The maximum goes first: a tiny temperature must not overflow.
    distances = scores.astype(np.float64) - float(scores.max())
    with np.errstate(over="ignore"):
        weights = np.exp(distances / temperature)
    likely: npt.NDArray[np.float64] = weights / weights.sum()
    return likely
