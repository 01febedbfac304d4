from __future__ import annotations

from pathlib import Path

import pytest
from fake_hub import COMMIT, SMALL, own_cache

from retrolocal import default_model as defaults
from retrolocal.default_model import default_model

GIB = 1 << 30


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(defaults, "machine_bytes", lambda: 16 * GIB)
    return own_cache(tmp_path, monkeypatch)


def put(cache: Path, model: str) -> None:
    repository = cache / f"models--{model.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, data in SMALL.items():
        (snapshot / name).write_bytes(data)


def test_nothing_here_is_the_built_in_one_and_what_would_fit(cache: Path) -> None:
    chosen = default_model()
    assert chosen.model == "builtin"
    assert "using the built-in one" in chosen.note
    assert "`retrolocal pull HuggingFaceTB/SmolLM3-3B`, 6.2 GB, fits this machine" in chosen.note
    assert "\n" not in chosen.note


def test_the_best_that_is_here_and_fits(cache: Path) -> None:
    put(cache, "Qwen/Qwen2.5-0.5B-Instruct")
    assert default_model().model == "Qwen/Qwen2.5-0.5B-Instruct"
    put(cache, "meta-llama/Llama-3.2-1B-Instruct")
    assert default_model().model == "meta-llama/Llama-3.2-1B-Instruct"
    put(cache, "Qwen/Qwen2.5-7B-Instruct-1M")
    assert default_model().model == "meta-llama/Llama-3.2-1B-Instruct"
    chosen = default_model(gpu_bytes=32 * GIB)
    assert chosen.model == "Qwen/Qwen2.5-7B-Instruct-1M"
    assert "no model was chosen: using Qwen/Qwen2.5-7B-Instruct-1M, which is here" in chosen.note


def test_a_machine_too_small_for_any_is_told_of_none(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "machine_bytes", lambda: GIB)
    assert "pull" not in default_model().note
    assert default_model().model == "builtin"


def test_an_incomplete_model_is_not_here(cache: Path) -> None:
    put(cache, "Qwen/Qwen2.5-0.5B-Instruct")
    next(cache.rglob("model.safetensors")).unlink()
    assert default_model().model == "builtin"
