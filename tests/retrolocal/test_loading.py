"""Quantised weights are made once, told from all others, and made again when they are damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from retrolocal import load, loading
from retrolocal.errors import UsageError
from retrolocal.loading import weights_identity
from retrolocal.paths import quantised_dir


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrolocal.paths.cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def refuse_quantising(monkeypatch: pytest.MonkeyPatch) -> Any:
    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("quantised again")

    return lambda: monkeypatch.setattr(loading, "load_decoder", refuse)


def first_logits(quant: str | None) -> torch.Tensor:
    with load("builtin", quant=quant, cache="dense") as session:
        return session.logits([5, 6, 7, 8])


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_the_second_start_reads_what_the_first_one_kept(quant: str, refuse_quantising: Any) -> None:
    one = first_logits(quant)
    [file] = quantised_dir().iterdir()
    refuse_quantising()
    assert torch.equal(first_logits(quant), one)
    assert [p.name for p in quantised_dir().iterdir()] == [file.name]


def test_every_setting_has_weights_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    with load("builtin", quant="int8"), load("builtin", quant="int4"):
        assert len(list(quantised_dir().iterdir())) == 2
    with load("builtin", quant="int4", dtype="float32"):
        assert len(list(quantised_dir().iterdir())) == 3
    identities = [str(weights_identity(tiny_model, q)) for q in ("none", "int8", "int4")]
    assert len(set(identities)) == 3
    assert "quant" not in identities[0]


@pytest.mark.parametrize("damage", [b"", b"\0" * 4096])
def test_a_damaged_file_is_made_again(damage: bytes) -> None:
    one = first_logits("int4")
    [file] = quantised_dir().iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert torch.equal(first_logits("int4"), one)
    assert file.read_bytes() == whole


def test_without_room_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = first_logits("int4")
    shutil.rmtree(quantised_dir())
    monkeypatch.setattr(loading, "MARGIN", 1 << 60)
    assert torch.equal(first_logits("int4"), kept)
    assert not list(quantised_dir().iterdir())


def test_only_known_settings() -> None:
    with pytest.raises(UsageError, match="--quant is 'int3'; give one of none, int8, int4"):
        load("builtin", quant="int3")
