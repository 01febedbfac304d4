"""Admission to the block cache of a GPU: clusters are copied from the store into slots.

Sources and targets are addresses, since what is copied lies in several segments' blocks, pinned in
the memory of the host, and in an arena of slots. `copy_clusters` chooses; the reference copies in
the memory of the process.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def copy_clusters(sources: Tensor, targets: Tensor, lengths: Tensor) -> None:
    """Copies lengths[i] bytes from address sources[i] to targets[i]; all int64 [n] on one device.

    No source overlaps a target. On a GPU the copy is only begun: whoever reads a slot comes later
    in the same stream.
    """
    if sources.device.type == "cuda":
        from .slots_triton import copy_clusters_triton

        copy_clusters_triton(sources, targets, lengths)
    else:
        copy_clusters_reference(sources, targets, lengths)


def copy_clusters_reference(sources: Tensor, targets: Tensor, lengths: Tensor) -> None:
    """See `copy_clusters`; tensors on the CPU."""
    every = torch.stack((targets, sources, lengths), dim=1)
    for target, source, length in every.tolist():
        ctypes.memmove(target, source, length)
