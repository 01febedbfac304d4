"""Whole-model speed: the rows, the caches that a depth is filled into, the refusals; no timing."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

from retrolocal import memory
from retrolocal.bench.decode import (
    Contender,
    filled_caches,
    run,
    step_milliseconds,
    time_test,
)
from retrolocal.bench.model import find_model, random_decoder
from retrolocal.bench.options import SpeedOptions
from retrolocal.bench.synthetic import structured_data
from retrolocal.cli import main
from retrolocal.config import CacheKind, SessionConfig
from retrolocal.errors import ConfigError, ContextError, MemoryLimitError, ModelError
from retrolocal.models.config import read_config
from retrolocal.paths import spill_dir

CPU = torch.device("cpu")
ROW = [
    *("model", "params", "size_bytes", "device", "dtype", "threads", "cache", "test", "n_prompt"),
    *("n_gen", "n_depth", "samples_tps", "mean_tps", "stddev_tps", "step_ms"),
]


def silent(line: str) -> None:
    pass


@pytest.fixture
def architecture(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder that holds nothing but a config.json."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    shutil.copy(tiny_model / "config.json", folder)
    return folder


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_rows_of_a_checkpoint(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"-m {tiny_model} -d 0,1500 -n 5 -p 40 -r 2 -b 16 --cache dense,wave --json"
    assert main(["bench", "decode", *words.split()]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    rows = facts["results"]
    assert [(row["cache"], row["test"]) for row in rows] == [
        (cache, f"{test}{depth}")
        for depth in ("", " @ d1500")
        for cache in ("dense", "wave")
        for test in ("pp40", "tg5")
    ]
    for row in rows:
        assert list(row) == ROW
        assert row["model"] == tiny_model.name
        assert row["size_bytes"] == 4 * row["params"]
        assert row["n_depth"] in (0, 1500)
        assert (row["n_prompt"], row["n_gen"]) in ((40, 0), (0, 5))
        assert len(row["samples_tps"]) == 2
        assert min(row["samples_tps"]) <= row["mean_tps"] <= max(row["samples_tps"])
        assert (row["step_ms"] is None) == (row["n_gen"] == 0)
    assert facts["weights"] == "checkpoint"
    assert "filling wave caches with 1,500 tokens" in captured.err


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantised_weights_are_timed(quant: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"-m builtin --quant {quant} -n 2 -r 1 --cache dense --weights random --json"
    assert main(["bench", "decode", *words.split()]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    assert row["mean_tps"] > 0
    assert row["size_bytes"] < 1.3 * row["params"]


def test_the_table(architecture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"-m {architecture}/config.json --weights random -n 2 -d 30 -r 1"
    assert main(["bench", "decode", *words.split()]) == 0
    *_, head, rule, row = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(head) == len(rule) == len(row)
    assert cells[0] == "tiny"
    assert cells[3] == "cpu float32"
    assert cells[5:7] == ["auto", "tg2 @ d30"]
    assert cells[7].endswith("± 0.00")


def reachable_tensors(root: object) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    left = [root]
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        else:
            left.extend(gc.get_referents(one))


@pytest.mark.parametrize("kind", ["dense", "wave"])
def test_filled_caches_hold_the_depth(kind: CacheKind, architecture: Path) -> None:
    rewrite(
        architecture,
        architectures=["SmolLM3ForCausalLM"],
        model_type="smollm3",
        use_sliding_window=True,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_hidden_layers=4,
    )
    config = read_config(architecture)
    data = structured_data(tokens=1500, q_heads=4, kv_heads=2, head_dim=16, steps=1)
    caches = filled_caches(config, SessionConfig(cache=kind), data, 1400, torch.float32, CPU)
    figures = [cache.statistics() for cache in caches]
    assert [one.kind for one in figures] == ["window", kind, "window", kind]
    assert [cache.tokens for cache in caches] == [1400] * 4
    assert figures[1] == figures[3]
    assert (figures[1].clusters > 0) == (kind == "wave")

    def step(cache: Any) -> torch.Tensor:
        before = cache.snapshot()
        one = torch.ones(2, 1, 16, dtype=data.k.dtype)
        answer = cache.attend(data.q[0, :, None], one, one, torch.tensor([1400]))
        cache.restore(before)
        return answer.clone()

    # A copy answers the same, from memory of its own.
    for original, copied in ((caches[0], caches[2]), (caches[1], caches[3])):
        answer = step(original)
        for tensor in reachable_tensors(original):
            tensor.zero_()
        assert torch.equal(step(copied), answer)


def test_a_test_leaves_the_caches_as_they_were(architecture: Path) -> None:
    options = SpeedOptions(
        model=str(architecture), random_weights=True, depths=(1100,), n_gen=(3,), repetitions=2
    )
    model = find_model(options, silent)
    decoder = random_decoder(model, 0)
    data = structured_data(
        tokens=1100, q_heads=4, kv_heads=2, head_dim=16, steps=1, dtype=torch.float32
    )
    kinds: tuple[CacheKind, ...] = ("wave", "dense")
    contenders = [
        Contender(
            kind,
            filled_caches(model.config, SessionConfig(cache=kind), data, 1100, model.dtype, CPU),
        )
        for kind in kinds
    ]
    reports: list[tuple[str, int]] = []
    for prompt, generated in ((40, 0), (0, 3)):
        timings = time_test(
            *(decoder, contenders, 1100, prompt, generated, options),
            lambda name, number, _: reports.append((name, number)),
        )
        for one, timing in zip(contenders, timings, strict=True):
            assert len(timing.seconds) == 2
            assert len(timing.steps) == 2 * generated
            assert [cache.tokens for cache in one.caches] == [1100, 1100]
    assert reports == [("wave", 1), ("dense", 1), ("wave", 2), ("dense", 2)] * 2


@pytest.mark.parametrize(("free", "order"), [(1 << 40, "wdwd"), (0, "wwdd")])
def test_caches_take_turns_where_both_fit(
    free: int, order: str, architecture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.bench.model.available_bytes", lambda: free)
    options = SpeedOptions(
        model=str(architecture),
        random_weights=True,
        n_gen=(2,),
        repetitions=2,
        caches=("wave", "dense"),
    )
    lines: list[str] = []
    found = run(options, lines.append)
    assert found["in_turn"] == (order == "wdwd")
    timed = [line.partition(", ")[2][0] for line in lines if "tokens/s" in line]
    assert "".join(timed) == order
    assert [row["cache"] for row in found["results"]] == ["wave", "dense"]


def test_random_weights_are_the_same_for_the_same_seed(architecture: Path) -> None:
    rewrite(architecture, torch_dtype=None, dtype="bfloat16")
    model = find_model(
        SpeedOptions(model=str(architecture), random_weights=True, n_gen=(1,)), silent
    )
    assert (model.dtype, model.folder) == (torch.bfloat16, None)
    first, same, other = (random_decoder(model, seed).state_dict() for seed in (1, 1, 2))
    assert sum(value.numel() for value in first.values()) == model.parameters
    for name, value in first.items():
        assert torch.equal(value, same[name])
        if value.dim() == 2:
            assert not torch.equal(value, other[name])
            assert 0.7 < float(value.float().std()) * value.shape[1] ** 0.5 < 1.3
        else:
            assert bool((value == 1).all())


def test_what_does_not_fit_is_refused_with_both_figures(
    architecture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def options(depth: int) -> SpeedOptions:
        return SpeedOptions(
            model=str(architecture), random_weights=True, depths=(0, depth), n_gen=(8,)
        )

    with pytest.raises(ContextError, match=r"8 tokens at depth 4,089 make 4,097 .* for 4,096"):
        run(options(4089), silent)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    with pytest.raises(MemoryLimitError, match=r"tiny with 4,096 tokens needs .* are free"):
        run(options(4088), silent)


def test_random_weights_need_a_config(architecture: Path, tmp_path: Path) -> None:
    def options(name: str | Path) -> SpeedOptions:
        return SpeedOptions(model=str(name), random_weights=True, n_gen=(8,))

    for wrong in ("org/name", tmp_path / "none", tmp_path):
        with pytest.raises(ModelError, match=r"needs a config\.json"):
            find_model(options(wrong), silent)
    rewrite(architecture, torch_dtype="int4")
    with pytest.raises(ConfigError, match="'torch_dtype' is 'int4'; one of float32"):
        find_model(options(architecture), silent)
    named = architecture.parent / "My-Model.json"
    rewrite(architecture, torch_dtype="float16")
    shutil.copy(architecture / "config.json", named)
    model = find_model(options(named), silent)
    # A CPU does not compute in float16.
    expected: Any = torch.float32 if model.device == CPU else torch.float16
    assert (model.name, model.dtype) == ("My-Model", expected)


def test_step_milliseconds() -> None:
    figures = step_milliseconds([i / 1000 for i in range(1000, 0, -1)])
    assert figures == {"median": 500.5, "p95": 950.0, "p999": 999.0, "max": 1000.0}
    assert set(step_milliseconds([0.001]).values()) == {1.0}


def test_wave_caches_in_a_file(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"-m {tiny_model} -d 0,1500 -n 3 -r 1 --cache dense,wave --in-file 10 --json"
    assert main(["bench", "decode", *words.split()]) == 0
    facts = json.loads(capsys.readouterr().out)
    deep = [row["cache"] for row in facts["results"] if row["n_depth"]]
    assert deep == ["dense", "wave", "wave, file, nothing ahead", "wave, file, 2 readers"]
    assert any("dropped from the page cache" in note for note in facts["notes"])
    for wrong in ("--cache dense --in-file 10", "--cache wave --in-file 0"):
        assert main(["bench", "decode", "-m", str(tiny_model), *wrong.split()]) == 2
    assert list(spill_dir().iterdir()) == []
