"""What is said of the caches that a text gets."""

from __future__ import annotations

import pytest

from retrolocal.caches import index_note
from retrolocal.config import CacheKind, Scheme, SessionConfig, WaveConfig


@pytest.mark.parametrize(
    ("cache", "scheme", "budget", "said"),
    [
        ("auto", "wave", None, None),
        ("wave", "paper", 0.1, None),
        ("auto", "paper", None, "--scheme paper: used from the length on where the index is no"),
        ("auto", "wave", 0.1, "--budget 0.1: used from the length on where the index is no slower"),
        ("dense", "paper", 0.1, "--scheme paper and --budget 0.1: used in no text with --cache"),
    ],
)
def test_where_the_index_may_be_unused_its_settings_are(
    cache: CacheKind, scheme: Scheme, budget: float | None, said: str | None
) -> None:
    config = SessionConfig(cache=cache, wave=WaveConfig(scheme=scheme, budget=budget))
    note = index_note(config)
    assert note is None if said is None else str(note).startswith(said)
