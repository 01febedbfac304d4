"""The elementwise part of wave prefill, compiled for CPUs: two passes where PyTorch makes a dozen.

Both work in place on float32 [R, n], row by row, on PyTorch's number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .jit_numba import exp, jit
from .team import together
from .wave_score_numba import finish

ROWS = 16
"""Rows that share a sum over columns."""


@jit(entry=True)
def _log_masses(scores, norms, log_sizes, spreads, lse, start, stop):
    for r in range(start, stop):
        row, top, total = scores[r], lse[r], np.float32(0.0)
        finish(row, spreads, log_sizes, norms[r])
        for i in range(len(row)):
            top = max(top, row[i])
        for i in range(len(row)):
            total += exp(row[i] - top)
        lse[r] = top + np.log(total + exp(lse[r] - top))


@jit(entry=True)
def _shares(masses, z, sums, start, stop):
    for r in range(start, stop):
        row, total, shift = masses[r], sums[r // ROWS], z[r]
        for i in range(len(row)):
            share = exp(row[i] - shift)
            row[i] = share
            total[i] += share


def log_masses(
    scores: Tensor, norms: Tensor, log_sizes: Tensor, spreads: Tensor, lse: Tensor
) -> None:
    """scores become log masses (see `log_mass`) and lse [R] grows by their mass.

    norms [R] are squares of the queries' lengths, log_sizes and spreads [n]; all float32.
    """
    arrays = [t.contiguous().numpy() for t in (norms, log_sizes, spreads)]
    rows, into, members = scores.numpy(), lse.numpy(), torch.get_num_threads()

    def share(number: int) -> None:
        start, stop = (len(rows) * n // members for n in (number, number + 1))
        _log_masses(rows, *arrays, into, start, stop)

    together(members, share)


def shares(masses: Tensor, z: Tensor) -> Tensor:
    """masses become e^(masses - z) with z [R]; returns their sums over rows, [n]."""
    blocks = -(-masses.shape[0] // ROWS)
    sums = torch.zeros(blocks, masses.shape[1])
    rows, shifts, totals = masses.numpy(), z.contiguous().numpy(), sums.numpy()
    members = torch.get_num_threads()

    def share(number: int) -> None:
        start, stop = (blocks * n // members * ROWS for n in (number, number + 1))
        _shares(rows, shifts, totals, start, min(stop, len(rows)))

    together(members, share)
    return sums.sum(0)
