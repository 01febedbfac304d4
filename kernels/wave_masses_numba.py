"""Log masses of clusters in a compiled decode step: as shares of the largest, summed, and ranks."""

from __future__ import annotations

import numpy as np

from .jit_numba import exp, jit
from .tiles_numba import highest
from .wave_words_numba import NOTHING

FAR_BELOW = np.float32(1e-13)
"""Of the largest mass: what is below it is measured anew when the largest is left out."""


@jit()
def _exponentials(masses, n, out, top):
    """out[i] = e^(masses[i] - top) for i < n; returns their sum."""
    total = np.float32(0.0)
    for i in range(n):
        out[i] = exp(masses[i] - top)
    for i in range(n):
        total += out[i]
    return total


@jit()
def weigh(masses, n, shares, tops, z):
    """shares[g, :n] become e^(masses[g, :n] - tops[g]), tops[g] the largest of them.

    z[g] becomes log(e^z[g] + their sum).
    """
    for g in range(len(z)):
        tops[g] = max(highest(masses[g, :n]), NOTHING)
        _add_mass(z, g, tops[g], _exponentials(masses[g], n, shares[g], tops[g]))


@jit()
def _add_mass(z, g, top, total):
    """z[g] becomes log(e^z[g] + total e^top)."""
    if total > np.float32(0.0):
        high = max(z[g], top)
        z[g] = high + np.log(exp(z[g] - high) + total * exp(top - high))


@jit()
def keep(masses, n, zones, kept, shares, tops, z):
    """shares[g, i] of entries in other zones than `kept` become 0; z as in `weigh`.

    What was left out may have been estimated far too high: what weighs nothing beside it need not
    weigh nothing.
    """
    for g in range(len(z)):
        total = np.float32(0.0)
        for i in range(n):
            shares[g, i] = shares[g, i] if zones[i] == kept else np.float32(0.0)
        for i in range(n):
            total += shares[g, i]
        if total < FAR_BELOW:
            for i in range(n):
                if zones[i] != kept:
                    masses[g, i] = -np.inf
            tops[g] = max(highest(masses[g, :n]), NOTHING)
            total = _exponentials(masses[g], n, shares[g], tops[g])
        _add_mass(z, g, tops[g], total)


@jit()
def add_masses(masses, n, z):
    """z[g] = log(e^z[g] + sum of e^masses[g, :n])."""
    for g in range(len(z)):
        top, total = max(highest(masses[g, :n]), NOTHING), np.float32(0.0)
        for i in range(n):
            total += exp(masses[g, i] - top)
        _add_mass(z, g, top, total)


@jit()
def rank(shares, n, tops, z, out):
    """out[i] = sum over queries of shares[g, i] e^(tops[g] - z[g]); returns the sum of all."""
    for i in range(n):
        out[i] = np.float32(0.0)
    for g in range(len(z)):
        factor = exp(tops[g] - z[g])
        for i in range(n):
            out[i] += shares[g, i] * factor
    total = 0.0
    for i in range(n):
        total += out[i]
    return total


@jit()
def rank_by_centroid(shares, n, sizes, ranks):
    """Ranks as if all clusters had one token: sizes do not rank."""
    ranks[:n] = np.float32(0.0)
    for g in range(len(shares)):
        total = np.float32(0.0)
        for i in range(n):
            total += shares[g, i] / np.float32(sizes[i])
        for i in range(n):
            ranks[i] += shares[g, i] / (np.float32(sizes[i]) * total)
