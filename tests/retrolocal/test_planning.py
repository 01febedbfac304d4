"""Plans against what then happens, the settings that are tried, refusals with what would fit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import FakeHub, own_cache, point_at
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file

from retrolocal import load, machine, memory, plan, remembered
from retrolocal.cli import main
from retrolocal.config import CacheKind, SessionConfig, WaveConfig
from retrolocal.errors import MemoryLimitError
from retrolocal.expected_time import decode_seconds
from retrolocal.machine import Machine
from retrolocal.memory import Limit
from retrolocal.models.config import parse_config, read_config
from retrolocal.models.json_reader import JsonReader
from retrolocal.planning import FALLBACKS, Planner, needs
from retrolocal.recommended import RECOMMENDED

GIB = 1 << 30
RATES = Machine(
    weight_bytes=2e10,
    int8_bytes=1.6e10,
    int4_bytes=1.2e10,
    matrix_operations=2e11,
    attention_operations=1e11,
    elements=1e8,
    attended_bytes=1e10,
    clustered=1e5,
    layers=5e3,
    indexed_layers=5e3,
)
CACHES: tuple[CacheKind, ...] = ("dense", "wave")
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1010000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e7,
    "tie_word_embeddings": False,
}
SHAPE = parse_config(JsonReader(QWEN, Path("config.json"), MemoryLimitError))


def planner(gib: float, **config: Any) -> Planner:
    wave = WaveConfig(store_type="int8")
    return Planner(
        "qwen",
        SHAPE,
        SessionConfig(wave=wave, **config),
        torch.bfloat16,
        "cpu",
        there=Limit(int(gib * GIB), "given"),
        program=GIB // 2,
        rates=RATES,
    )


def test_the_parts_make_the_peak() -> None:
    made = planner(64).plan(100_000)
    assert made.weights == pytest.approx(15.2e9, rel=0.01)
    parts = made.weights + made.index + made.store + made.cache + made.workspace + made.program
    assert made.total == made.prefill_peak == parts
    assert made.loading_peak == made.program + made.weights + 152064 * 3584 * 2
    assert made.store == pytest.approx(100_000 * 28 * 1024 * 1.03, rel=0.05)
    assert json.loads(json.dumps(made.facts()))["fits"] is True


def test_less_memory_means_a_file_then_fewer_bits_then_nothing() -> None:
    found = [planner(gib).plan(500_000) for gib in (64, 22, 10)]
    assert [p.store_in for p in found] == ["memory", "file", "nowhere"]
    assert found[1].total <= 22 * GIB
    best = [one for gib in (64, 26, 18, 12) if (one := planner(gib).best(500_000)) is not None]
    assert [one.store_in for one in best] == ["memory", "memory", "memory", "file"]
    assert all(one.total <= one.available for one in best)
    order = [FALLBACKS.index((one.quant, one.store_type)) for one in best[:3]]
    assert order == sorted(set(order))
    assert order[0] == 0
    assert planner(3).best(500_000) is None


def test_the_longest_text_fits_and_a_longer_one_does_not() -> None:
    tight = planner(6.5)
    longest = tight.longest()
    assert longest is not None
    assert longest.fits
    assert 1000 < longest.tokens < SHAPE.max_positions
    assert not tight.plan(longest.tokens + 2000, *FALLBACKS[-1]).fits
    assert planner(1).longest() is None


def test_times_follow_what_is_read_and_computed() -> None:
    one, two = planner(99).plan(100_000), planner(99).plan(200_000)
    assert one.prefill_seconds is not None
    assert two.prefill_seconds is not None
    assert 2 * one.prefill_seconds < two.prefill_seconds < 4 * one.prefill_seconds
    dense, quant = planner(99, cache="dense"), planner(99, quant="int4")
    assert one.decode_seconds < dense.plan(100_000).decode_seconds  # type: ignore[operator]
    assert quant.plan(100_000).decode_seconds < one.decode_seconds  # type: ignore[operator]


def test_a_step_takes_what_every_step_takes() -> None:
    """Whatever its size: so much a layer, and so much more where it goes through the index."""

    def seconds(tokens: int, cache: CacheKind, rates: Machine) -> float:
        return decode_seconds(SHAPE, SessionConfig(cache=cache), torch.bfloat16, tokens, rates)

    slow_layers, slow_index = replace(RATES, layers=1e3), replace(RATES, indexed_layers=1e3)
    more = len(SHAPE.layers) * (1e-3 - 2e-4)
    for cache in CACHES:
        plain = seconds(100_000, cache, RATES)
        assert seconds(100_000, cache, slow_layers) == pytest.approx(plain + more)
    dense = seconds(100_000, "dense", RATES)
    assert seconds(100_000, "dense", slow_index) == dense
    assert seconds(100_000, "wave", slow_index) == pytest.approx(
        seconds(100_000, "wave", RATES) + more
    )
    assert seconds(500, "wave", slow_index) == seconds(500, "dense", RATES) < dense


def test_a_refusal_names_the_plan_that_fits(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = read_config(tiny_model), SessionConfig(ctx_size=0)
    needed = needs(model, config, torch.float32, 0, kept=False, first=False)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed.weights - 1)
    with pytest.raises(MemoryLimitError, match=r"iB are free.*; nothing of this model fits"):
        load(str(tiny_model))
    tight = replace(planner(20).plan(1), available=0)
    assert "GiB" in planner(20).advice(200_000)
    assert "at most" in planner(6.5).advice(1_000_000)
    assert tight.fits


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine", lambda device, dtype, tell: RATES)


@pytest.mark.usefixtures("rates")
def test_the_command_answers_for_a_length_and_for_a_file(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("a few words " * 50)
    assert main(["plan", "-m", str(tiny_model), "-f", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert 600 <= answer["tokens"] <= 700
    assert answer["fits"]
    assert answer["best"]["store_in"] == "memory"
    assert main(["plan", "-m", str(tiny_model), "--tokens", "3000", "-ctk", "q4_0"]) == 0
    text = capsys.readouterr().out
    for word in ("weights", "index", "store", "cache", "workspace", "peak", "time", "It fits."):
        assert word in text
    assert "--store-type int4" in text


@pytest.mark.usefixtures("rates")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--tokens", "0"], 2),
        (["--tokens", "5", "-f", "x"], 2),
        (["--tokens", "5", "--ram", "1G", "--vram", "1G"], 2),
        (["--tokens", "5", "--quant", "int5"], 2),
        (["--tokens", "5000"], 1),
        (["--tokens", "500", "--ram", "10M"], 1),
        (["--tokens", "500", "--vram", "8G"], 0),
    ],
    ids=str,
)
def test_exit_codes(words: list[str], code: int, tiny_model: Path) -> None:
    assert main(["plan", "-m", str(tiny_model), *words]) == code


Captured = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("rates")
def test_a_plan_fetches_no_weights(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a few words " * 50)
    for words in (["--tokens", "3000"], ["-f", "a.txt"]):
        assert main(["plan", "-m", "org/model", *words, "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert planned["fits"]
        assert planned["weights"] > 0
    assert hub.asked("config.json")
    assert not hub.asked("safetensors")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["pull", "org/model", "-q"]) == 0
    assert main(["plan", "-m", "org/model", "-f", "a.txt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == planned["weights"]


@pytest.mark.usefixtures("rates")
def test_what_takes_long_is_said_before(
    tiny_model: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abcd")
    words = ["plan", "-m", str(tiny_model), "-f", str(file)]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(plan, "MANY_CHARACTERS", 4)
    monkeypatch.setattr(machine, "machine", lambda device, dtype, tell: tell("measuring") or RATES)
    assert main(words) == 0
    assert capsys.readouterr().err == "counting the tokens of 4 characters\nmeasuring\n"


@pytest.mark.usefixtures("rates")
def test_what_has_to_be_downloaded_has_to_fit_on_the_disk(
    hub: FakeHub, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["plan", "-m", "org/model", "--tokens", "9"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(rf"  download +\S+ kB   into {tmp_path / 'hub'}, .* free\n", said)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 10_000))
    assert main(words) == 1
    said = capsys.readouterr().out
    assert f"into {tmp_path / 'hub'}, 10.0 kB free" in said
    assert "It does not fit on the disk of" in said.splitlines()[-1]
    assert main([*words, "--json"]) == 1
    planned = json.loads(capsys.readouterr().out)
    assert not planned["fits"]
    assert planned["download_bytes"] >= len(hub.files["model.safetensors"])
    assert planned["download_free_bytes"] == 10_000
    assert main(["plan", "-m", "builtin", "--tokens", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["download_bytes"] == 0


@pytest.mark.usefixtures("rates")
def test_a_plan_of_sharded_weights_fetches_none(
    hub: FakeHub, capsys: Captured, tmp_path: Path
) -> None:
    weights = hub.files.pop("model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    names = {name: shard for name in load_bytes(weights)}
    hub.files[shard] = weights
    index = json.dumps({"weight_map": names})
    hub.files["model.safetensors.index.json"] = index.encode()
    for _ in range(2):
        assert main(["plan", "-m", "org/model", "--tokens", "9", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fits"]
    assert not hub.asked(shard)
    assert not hub.asked(shard, "HEAD")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("command", ["chat", "ingest"])
def test_what_cannot_fit_is_refused_before_its_weights_are_fetched(
    command: str,
    hub: FakeHub,
    capsys: Captured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("abc " * 750)
    given = ["-f", str(file), "-p", "x", "--no-store"] if command == "chat" else [str(file)]
    words = [command, *given, "-m", "org/model", "--cache", "dense", "-q"]
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert re.match(r"retrolocal: not downloaded: org/model with 3,\d\d\d tokens", said)
    assert "iB are free: " in said
    assert said.count("\n") == 1
    monkeypatch.undo()
    own_cache(tmp_path, monkeypatch)
    point_at(hub.url, monkeypatch)
    config = json.loads(hub.files["config.json"]) | {"max_position_embeddings": 512}
    hub.files["config.json"] = json.dumps(config).encode()
    assert main(words) == 1
    assert "org/model has positions for 512" in capsys.readouterr().err
    assert main([*words, "-c", "1000"]) == 1
    assert "--ctx-size is 1,000 and org/model has positions for 512" in capsys.readouterr().err
    assert not hub.asked("safetensors")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_recommended_fits_the_same_limits(
    hub: FakeHub, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.default_model.machine_bytes", lambda: 16 * GIB)
    monkeypatch.setattr(memory, "available_bytes", lambda: 16 * GIB)
    words = ["chat", "-m", "org/model", "-p", "x", "-q", "--device", "cpu"]
    assert main([*words, "--ram", "20M"]) == 1
    assert "could be" not in capsys.readouterr().err
    config = json.loads(hub.files["config.json"]) | {"model_type": "mamba"}
    hub.files["config.json"] = json.dumps(config).encode()
    hub.revisions["main"] = "b" * 40
    assert main([*words, "--ram", "4G"]) == 1
    assert "Qwen/Qwen2.5-0.5B-Instruct could be" in capsys.readouterr().err
    planned = ["plan", "-m", "org/model", "--tokens", "5", "--device", "cpu"]
    assert main([*planned, "--ram", "100M"]) == 1
    assert "could be" not in capsys.readouterr().err
    assert main(planned) == 1
    assert "HuggingFaceTB/SmolLM3-3B could be" in capsys.readouterr().err


def test_without_a_model_it_shows_those_worth_trying(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache(tmp_path, monkeypatch)
    assert main(["plan", "--device", "cpu", "--ram", "16G", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["default"] == "builtin"
    assert told["memory_bytes"] == 16 << 30
    fits = {one["model"]: one["fits"] for one in told["models"]}
    assert fits["Qwen/Qwen2.5-0.5B-Instruct"]
    assert not fits["Qwen/Qwen2.5-7B-Instruct-1M"]
    assert not any(one["here"] for one in told["models"])
    assert main(["plan", "--vram", "24G", "--json"]) == 0
    fits = {one["model"]: one["fits"] for one in json.loads(capsys.readouterr().out)["models"]}
    assert fits["Qwen/Qwen2.5-7B-Instruct-1M"]
    assert not fits["Qwen/Qwen2.5-14B-Instruct-1M"]
    assert main(["plan"]) == 0
    text = capsys.readouterr().out
    for one in RECOMMENDED:
        assert one.model in text
    assert "No model was chosen: using the built-in one" in text


def test_a_usual_model_does_not_hide_the_table(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache(tmp_path, monkeypatch)
    monkeypatch.setenv("RETROLOCAL_MODEL", "org/model")
    assert main(["plan"]) == 0
    assert RECOMMENDED[0].model in capsys.readouterr().out
    assert main(["plan", "-m", "builtin"]) == 2
    assert "builtin needs a text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vram", "24Q"], "--vram is '24Q'; give a size (such as 4G or 512M)"),
        (["--vram", "0"], "--vram is 0; give a size above 0, such as 24G"),
    ],
)
def test_sizes_are_refused_in_the_users_words(
    words: list[str], said: str, capsys: Captured
) -> None:
    assert main(["plan", "-m", "builtin", "--tokens", "5", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("rates")
def test_what_fits_nowhere_is_not_in_nowhere(tiny_model: Path, capsys: Captured) -> None:
    assert main(["plan", "-m", str(tiny_model), "--tokens", "500", "--ram", "10M"]) == 1
    assert "nowhere" not in capsys.readouterr().out


def test_rates_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(machine, "ROWS", 128)
    told: list[str] = []
    one = machine.machine(torch.device("cpu"), torch.bfloat16, told.append)
    assert min(vars_of(one)) > 0
    assert told == ["measuring this machine, once: about a minute"]
    monkeypatch.setattr(machine, "_measured", lambda *given: pytest.fail("measured again"))
    assert machine.machine(torch.device("cpu"), torch.bfloat16, told.append) == one
    assert len(told) == 1


def test_where_there_is_no_room_they_are_measured_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: AbstractContextManager[None]
) -> None:
    monkeypatch.setattr(remembered, "cache_dir", lambda: tmp_path)
    with full_disk:
        remembered.remember("file.json", "key", {"field": "longer than what there is room for"})
    assert list(tmp_path.iterdir()) == []
    assert remembered.remembered("file.json", ["field"]) == {}


def vars_of(rates: Machine) -> list[float]:
    return [getattr(rates, name) for name in Machine.__dataclass_fields__]


PEAK = """
import sys
from pathlib import Path
from retrolocal.cli import main
assert main(sys.argv[1:]) == 0
# ru_maxrss would begin at what the parent had.
status = Path("/proc/self/status").read_text()
print("PEAK", int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


def write_wide_model(tiny_model: Path, folder: Path) -> None:
    """The tiny model with sizes at which memory shows, bfloat16."""
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    hidden, inner, layers = 512, 1024, 4
    config = json.loads((folder / "config.json").read_text()) | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 32768,
    }
    (folder / "config.json").write_text(json.dumps(config))
    small = load_file(tiny_model / "model.safetensors")
    weights = {}
    for name in small:
        for layer in range(layers) if "layers.0." in name else [None]:
            rows, columns = (
                (inner if "gate" in name or "up" in name else hidden),
                (inner if "down" in name else hidden),
            )
            rows = 259 if "embed" in name else rows
            shape = (hidden,) if small[name].dim() == 1 else (rows, columns)
            to = name if layer is None else name.replace("layers.0.", f"layers.{layer}.")
            if "layers.1." in name:
                continue
            made = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.03
            weights[to] = made.bfloat16()
    save_file(weights, folder / "model.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are in other units")
@pytest.mark.parametrize("cache", ["dense", "wave"])
def test_memory_is_what_was_planned(tiny_model: Path, tmp_path: Path, cache: str) -> None:
    folder, text = tmp_path / "wide", tmp_path / "text.txt"
    folder.mkdir()
    write_wide_model(tiny_model, folder)
    text.write_text("abcdefgh ijk lmnop. " * 500)
    given = ["-m", str(folder), "-f", str(text), "--cache", cache]
    planned = json.loads(output([sys.executable, "-m", "retrolocal", "plan", *given, "--json"]))
    asked = ["chat", *given, "-p", "hi", "-n", "2", "--plain", "--no-store", "-q"]
    # What compiling takes is in no plan: the first run is there to have done it.
    output([sys.executable, "-c", PEAK, *asked])
    printed = output([sys.executable, "-c", PEAK, *asked])
    measured = int(printed.rpartition("PEAK ")[2])
    assert planned["total"] == pytest.approx(measured, rel=0.1)
    assert planned["total"] > planned["program"] * 1.2


def output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
