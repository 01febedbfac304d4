from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


@pytest.fixture
def full_disk() -> AbstractContextManager[None]:
    """A block in which no file of this process gets longer than a few bytes."""

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return full()
