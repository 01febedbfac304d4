"""Clusters ahead of time: one thread for the whole process, one segment of one layer at a time.

A job begins and is taken up at token counts that depend on nothing but the context, so the same
tokens give the same bytes however fast the thread is; who takes a job up too early waits for it.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import WaveConfig
from ..kernels.segment import Segment
from .clustering import cluster_segment


@dataclass(frozen=True, slots=True)
class Plan:
    """Which tokens become a segment, and the length of the context at which it is there."""

    start: int
    stop: int
    due: int


class Job:
    """A plan that is being carried out on copies of the keys and values [H, N, D]."""

    def __init__(self, plan: Plan, keys: Tensor, values: Tensor, config: WaveConfig) -> None:
        self.plan = plan
        copies = (keys.clone(), values.clone())
        self._work: Future[tuple[Segment, Tensor]] = _worker().submit(
            cluster_segment, *copies, config
        )

    def result(self) -> tuple[Segment, Tensor]:
        """Waits; raises what clustering raised."""
        return self._work.result()

    def drop(self) -> None:
        """Nobody wants it any more: it is not begun if it has not been."""
        self._work.cancel()


@functools.cache
def _worker() -> ThreadPoolExecutor:
    # One core is enough: the others go on generating.
    return ThreadPoolExecutor(
        1, thread_name_prefix="clustering", initializer=torch.set_num_threads, initargs=(1,)
    )
