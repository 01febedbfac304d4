"""The memory estimate against known sizes, and the refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrolocal import memory
from retrolocal.config import WaveConfig
from retrolocal.errors import MemoryLimitError
from retrolocal.memory import (
    Limit,
    MemoryEstimate,
    Placement,
    _cgroup_files,
    available_bytes,
    estimate,
    limit,
    place,
    placed,
    require,
)
from retrolocal.models.config import read_config

GIB = 1 << 30


def needed(folder: Path, tokens: int, **changes: Any) -> MemoryEstimate:
    settings: dict[str, Any] = {
        "weight_bytes": 0,
        "element_bytes": 2,
        "chunk_tokens": 8192,
        "wave": None,
        **changes,
    }
    return estimate(read_config(folder), tokens=tokens, **settings)


@pytest.fixture
def config_folder(material: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        (tmp_path / "config.json").write_bytes((material / "configs" / f"{name}.json").read_bytes())
        return tmp_path

    return make


def test_a_million_tokens_of_a_real_model(config_folder: Callable[[str], Path]) -> None:
    folder = config_folder("Qwen2.5-7B-Instruct")
    dense = needed(folder, 1 << 20)
    assert dense.cache == 56 * GIB
    plain = needed(folder, 1 << 20, wave=WaveConfig(store_type="bf16"))
    assert 1.05 < plain.cache / dense.cache < 1.25
    assert plain.workspace == dense.workspace + 8192 * 4 * 128 * 16
    for store, most in (("int8", 30), ("int4", 16)):
        wave = needed(folder, 1 << 20, wave=WaveConfig(store_type=store))  # type: ignore[arg-type]
        stored = wave.cache - (plain.cache - dense.cache)
        assert 0.9 * most * GIB < stored <= most * GIB
        # A chunk of all layers as it came, in case it is interrupted.
        assert wave.workspace == plain.workspace + 8192 * 28 * 4 * 512


def test_require_says_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * GIB)
    fits = MemoryEstimate(weights=GIB, cache=GIB, workspace=GIB)
    require(fits, model="m", tokens=5)
    with pytest.raises(
        MemoryLimitError, match=r"m with 1,000 tokens needs about 5\.0 GiB .* 4\.0 GiB"
    ):
        require(replace(fits, cache=3 * GIB), model="m", tokens=1000)


def test_a_control_group_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    limit.write_text("1000000\n")
    usage.write_text("400000\n")
    monkeypatch.setattr(memory, "_CGROUP_FILES", ((limit, usage),))
    assert available_bytes() == 600000
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 100000\n")
    assert available_bytes() == 700000
    limit.write_text("max\n")
    assert available_bytes() > 700000


def test_the_groups_above_limit_too(tmp_path: Path) -> None:
    memberships = tmp_path / "cgroup"
    memberships.write_text("4:cpu:/a\n3:memory:/docker/x\n0::/user/me\n")
    limits = [str(limit.relative_to(tmp_path)) for limit, _ in _cgroup_files(memberships, tmp_path)]
    assert set(limits) == {
        "memory/docker/x/memory.limit_in_bytes",
        "memory/docker/memory.limit_in_bytes",
        "memory/memory.limit_in_bytes",
        "user/me/memory.max",
        "user/memory.max",
        "memory.max",
    }


def test_what_goes_where() -> None:
    needed = MemoryEstimate(weights=GIB, cache=5 * GIB, stored=4 * GIB, workspace=GIB)
    assert needed.in_memory == 3 * GIB

    def found(bytes: int) -> Placement | None:
        return place(needed, Limit(bytes, "given"), GIB)

    ram = int(36 * GIB * 7 / 8)
    assert found(40 * GIB) == Placement(ram, 36 * GIB - ram)
    assert found(8 * GIB) == Placement(4 * GIB, 0)
    assert found(7 * GIB) == Placement(0, 3 * GIB)
    assert found(5 * GIB) == Placement(0, GIB)
    assert found(4 * GIB + needed.stored // 50) == Placement(0, needed.stored // 50)
    assert found(4 * GIB) is None
    with pytest.raises(MemoryLimitError, match=r"m with 9 tokens needs about 4\.1 GiB even with"):
        placed(needed, Limit(4 * GIB, "--ram is {}"), GIB, model="m", tokens=9)
    close = Limit(GIB + needed.least - 1, "--ram is {}")
    with pytest.raises(MemoryLimitError, match=r"about 4,380,866,641 b.*--ram is 4,380,866,640 b"):
        placed(needed, close, GIB, model="m", tokens=9)


def test_the_limit_is_what_was_given_or_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * GIB)
    assert limit(0, GIB) == Limit(5 * GIB, "{} are free", 4 * GIB)
    assert limit(3 * GIB, GIB) == Limit(3 * GIB, "--ram is {}")
    assert [limit(ram, GIB).words for ram in (1, 2)] == ["--ram is 1 byte", "--ram is 2 bytes"]
    assert limit(0, GIB).words == "4.0 GiB are free"
    assert limit(9 * GIB, GIB) == Limit(5 * GIB, "{} are free", 4 * GIB)
