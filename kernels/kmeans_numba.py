"""The nearest centroid of every token, compiled for CPUs: PyTorch's argmax looks one by one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .jit_numba import jit
from .tiles_numba import highest

PART = 64
"""Products of which the largest is found at once."""


@jit(entry=True)
def _first_highest(products, labels):
    for r in range(len(products)):
        row, top, at = products[r], np.float32(-np.inf), 0
        for start in range(0, len(row), PART):
            found = highest(row[start : start + PART])
            if found > top:
                top, at = found, start
        while at < len(row) - 1 and row[at] != top:
            at += 1
        labels[r] = at


def first_highest(products: Tensor) -> Tensor:
    """The column of the largest of each row, the first of equals. [N, C] float32 -> int64 [N]."""
    labels = torch.empty(len(products), dtype=torch.int64)
    _first_highest(products.numpy(), labels.numpy())
    return labels
