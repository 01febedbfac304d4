from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, own_cache, point_at, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Iterator[FakeHub]:
    """The tiny model on a Hub of its own, as org/model, and an empty cache."""
    own_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with serving() as fake:
        point_at(fake.url, monkeypatch)
        fake.files.clear()
        fake.files.update({path.name: path.read_bytes() for path in tiny_model.iterdir()})
        yield fake
