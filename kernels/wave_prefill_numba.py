"""The elementwise part of wave prefill, compiled for CPUs: one pass where PyTorch makes a dozen.

It works in place on float32 [R, n], row by row, on PyTorch's number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .jit_numba import exp, jit
from .team import together
from .tiles_numba import highest
from .wave_score_numba import finish

ROWS = 16
"""Rows that share a sum over columns."""


@jit(entry=True)
def _shares(scores, norms, log_sizes, spreads, lse, sums, start, stop):
    for r in range(start, stop):
        row, into, total = scores[r], sums[r // ROWS], np.float32(0.0)
        finish(row, spreads, log_sizes, norms[r])
        top = max(highest(row), lse[r])
        for i in range(len(row)):
            mass = exp(row[i] - top)
            row[i] = mass
            total += mass
        total += exp(lse[r] - top)
        lse[r] = top + np.log(total)
        whole = np.float32(1.0) / total
        for i in range(len(row)):
            share = row[i] * whole
            row[i] = share
            into[i] += share


def shares(
    scores: Tensor, norms: Tensor, log_sizes: Tensor, spreads: Tensor, lse: Tensor
) -> Tensor:
    """lse [R] grows by the masses (see `log_mass`) of scores [R, n], which become shares of e^lse.

    norms [R] are squares of the queries' lengths, log_sizes and spreads [n]; all float32. Returns
    the sums of the shares over rows, [n].
    """
    blocks = -(-scores.shape[0] // ROWS)
    sums = torch.zeros(blocks, scores.shape[1])
    arrays = [t.contiguous().numpy() for t in (norms, log_sizes, spreads)]
    rows, into, totals = scores.numpy(), lse.numpy(), sums.numpy()
    members = torch.get_num_threads()

    def share(number: int) -> None:
        start, stop = (blocks * n // members * ROWS for n in (number, number + 1))
        _shares(rows, *arrays, into, totals, start, min(stop, len(rows)))

    together(members, share)
    return sums.sum(0)
