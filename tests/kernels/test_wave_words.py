"""The words of a compiled step do not overlap."""

from __future__ import annotations

import numpy as np
import pytest

from retrolocal.kernels.compiled import compiled

pytestmark = pytest.mark.skipif(not compiled(), reason="numba is not installed")


def test_every_array_has_three_words_of_its_own() -> None:
    from retrolocal.kernels import wave_words_numba as words

    columns = {"FINE", "COARSE", "STARTS", "OFFSETS", "MEAN", "BLOCKS", "NONE", "ONE"}
    rules = {"DESCEND", "SURE", "SHARE_TOKENS", "SHARP_TOKENS"}
    rules |= {
        "SHARE_CLUSTERS",
        "EPSILON",
        "SHARE_ESTIMATED",
        "SEEN_SUMS",
        "SEEN_VALUES",
        "LEAST_GROUPS",
        "MOST",
        "SCALE",
        "SHARP_DESCEND",
        "FROZEN",
        "CALM",
        "FLAT",
        "FLAT_DESCEND",
        "FLAT_TOKENS",
    }
    zones = {"DROPPED", "RETRIEVED", "ESTIMATED"}
    places = {
        name: int(value)
        for name, value in vars(words).items()
        if isinstance(value, np.integer) and name not in columns | rules | zones
        if not name.startswith("S_")
    }
    numbers = sorted(place for place in places.values() if place <= words.STEADY_V)
    arrays = sorted(place for place in places.values() if place > words.STEADY_V)
    assert numbers == list(range(words.STEADY_V + 1))
    assert arrays == list(range(words.STEADY_V + 1, words.WORDS, 3))
