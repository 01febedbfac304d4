"""`sample`: a text with known segments, file systems that fail; `crash`: loss of power."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from retrolocal.library import Library


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"library_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    return _load("sample")


@pytest.fixture(scope="session")
def crash() -> ModuleType:
    return _load("crash")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "library"


@pytest.fixture
def library(root: Path, sample: ModuleType) -> Library:
    """Empty, and quick: it does not wait for the disk."""
    return Library(root, filesystem=sample.Hasty(root), now=lambda: 1_700_000_000.0)
