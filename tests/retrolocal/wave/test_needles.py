"""Lone tokens that a query wants by a wide margin, somewhere in structured keys, are found."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from retrolocal.bench.synthetic import structured_data
from retrolocal.config import WaveConfig
from retrolocal.fidelity import Steady, build_index, exact_attention
from retrolocal.wave.index import WaveIndex

TOKENS, KV_HEADS, DIM, STEPS = 16_500, 4, 64, 16
MARK = 8.0
"""Every element of a needle's value; those of other values are about one."""


@dataclass(frozen=True)
class Haystack:
    """64 needles: one for every step and KV head."""

    q: Tensor
    """bfloat16 [STEPS, Hq, DIM]: the first query of a KV head wants the needle."""
    k: Tensor
    v: Tensor
    places: Tensor
    """int64 [STEPS, KV_HEADS]."""


def planted(margin: float, *, gain: float, group: int, seed: int) -> Haystack:
    """Random tokens, each moved along a query until its logit leads all others by `margin`."""
    data = structured_data(
        tokens=TOKENS,
        q_heads=KV_HEADS * group,
        kv_heads=KV_HEADS,
        head_dim=DIM,
        steps=STEPS,
        gain=gain,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(100, TOKENS - 200, (STEPS, KV_HEADS), generator=generator)
    k, v, wanted = data.k.float(), data.v.clone(), data.q[:, ::group].float() / math.sqrt(DIM)
    # Again and again, because a needle moves the logits of the other queries of its head too.
    for _ in range(6):
        for step in range(STEPS):
            for head in range(KV_HEADS):
                q, place = wanted[step, head], places[step, head]
                logits = k[head] @ q
                others = torch.cat((logits[:place], logits[place + 1 :])).amax()
                k[head, place] += q * (others + margin - logits[place]) / q.square().sum()
    for head in range(KV_HEADS):
        v[head, places[:, head]] = MARK
    return Haystack(data.q, k.bfloat16(), v, places)


@pytest.mark.parametrize(("margin", "least"), [(10.0, 61), (20.0, 64)])
@pytest.mark.parametrize(("gain", "group"), [(1.0, 1), (2.0, 4)])
def test_needles_are_retrieved(margin: float, least: int, gain: float, group: int) -> None:
    """With the shares that a query of a much longer text reads, one may be missed."""
    hay = planted(margin, gain=gain, group=group, seed=0)
    short = WaveConfig()
    index, steady = build_index(hay.k, hay.v, short)
    found = {}
    for config in (short, replace(short, least_groups=1, least=0)):
        reading = WaveIndex(config)
        for segment in index.segments:
            reading.append(segment)
        found[config.least] = sum(retrieved(hay, reading, steady, margin))
    assert found[short.least] >= least, found
    assert found[0] >= least - 1, found


def retrieved(hay: Haystack, index: WaveIndex, steady: Steady, margin: float) -> list[bool]:
    """Which needles' masses are in what was attended exactly."""
    group, found = hay.q.shape[1] // KV_HEADS, []
    for q, places in zip(hay.q, hay.places, strict=True):
        answer = index.answer(q, steady)
        truth, _ = exact_attention(q, hay.k, hay.v)
        for head, place in enumerate(places.tolist()):
            row = head * group
            logits = hay.k[head].double() @ q[row].double() / math.sqrt(DIM)
            others = torch.cat((logits[:place], logits[place + 1 :]))
            assert margin - 0.5 < float(logits[place] - others.amax()) < margin + 0.5
            # All others together weigh less than the needle: its mass is there or it is not.
            assert torch.logsumexp(others, 0) < logits[place] - 0.1
            found.append(bool(answer.lse_exact[row] > logits[place] - 0.02))
            marked = bool((answer.out[row] > 0.9 * truth[row].amin()).all())
            assert truth[row].amin() > 0.4 * MARK
            assert marked or not found[-1]
    return found
