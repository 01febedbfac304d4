from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, own_cache, point_at, serving


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, with nobody's token."""
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    with serving() as fake:
        point_at(fake.url, monkeypatch)
        yield fake


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    # Port 9 of loopback refuses.
    point_at("http://127.0.0.1:9", monkeypatch)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting between two tries of the library takes no time; the seconds it asked for."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited
