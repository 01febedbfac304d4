"""The measurements of a GPU, run whole without one: kernels under Triton's interpreter, the device
is the CPU. Their figures mean nothing here; what they count does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from retrolocal.bench import all as everything
from retrolocal.bench import device_decode, device_score
from retrolocal.bench.command import BENCHES
from retrolocal.bench.device_buffer import Streamed, measure
from retrolocal.bench.model import find_model
from retrolocal.bench.options import AllOptions, SpeedOptions
from retrolocal.bench.synthetic import AttentionData, structured_answer
from retrolocal.cli import main
from retrolocal.config import SessionConfig, WaveConfig
from retrolocal.errors import UsageError
from retrolocal.kernels import device_table, wave_attention_triton
from retrolocal.kernels.attention import full_attention
from retrolocal.wave import device_cache

CPU = torch.device("cpu")
CONFIG = WaveConfig(
    sink_tokens=2,
    window_tokens=6,
    segment_tokens=64,
    growth_tokens=32,
    cluster_tokens=8,
    group_clusters=2,
    iterations=1,
    budget=0.4,
    store_type="int8",
)


@pytest.fixture
def small(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> AttentionData:
    """Kernels that take few programs, and a step after which every round is carried out."""
    if triton_device.type != "cpu":
        pytest.skip("kernels are compiled here: see the benchmarks themselves")
    monkeypatch.setattr(wave_attention_triton, "PARTS", wave_attention_triton.Parts(1, 1, 1))
    monkeypatch.setattr(device_table, "LEAST", (4, 64, 64, 64))
    monkeypatch.setattr(device_cache, "EVERY", 1)
    monkeypatch.setattr(device_cache, "LEAST_BYTES", 1)
    wave_attention_triton.forget()
    return structured_answer(tokens=72, q_heads=2, kv_heads=1, head_dim=16, steps=8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_block_cache_in_four_ways(small: AttentionData) -> None:
    lines: list[str] = []
    data = AttentionData(small.q.float(), small.k.float(), small.v.float())
    found = measure(data, CONFIG, 100.0, 1, CPU, lines.append)
    cached = found["block_cache"]
    assert {name for name in found if isinstance(found[name], dict)} == {
        *("gpu", "pinned", "stream", "block_cache")
    }
    assert found["steps"] == 8
    # Everything has a slot: what was asked for before is found, and nothing of it comes again.
    assert 0 < cached["hit_ratio"] <= 1
    assert 0 < cached["bytes"] <= found["store_bytes"]
    retrieved = cached["bus_bytes_per_step"] + cached["gpu_bytes_per_step"]
    assert 0 <= cached["bus_bytes_per_step"] < found["store_bytes"]
    assert retrieved > 0
    assert found["block_cache_over_gpu"] == cached["ms"] / found["gpu"]["ms"]
    json.dumps(found)


def test_streamed_attention_is_dense_attention() -> None:
    q, k, v = torch.randn(3, 4, 16), torch.randn(2, 100, 16), torch.randn(2, 100, 16)
    streamed = Streamed(k, v, CPU, piece=32)
    for query in q:
        expected, _ = full_attention(query[:, None], k, v, scale=0.25)
        torch.testing.assert_close(streamed.step(query), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scoring_counts_what_it_reads(small: AttentionData) -> None:
    data = AttentionData(small.q.float(), small.k.float(), small.v.float())
    found = device_score.measure(data, CONFIG, CPU, lambda line: None, copies=2, copied=1024)
    grouped = found["bytes_read"] // (16 + 2 * 2 + 2 + 4)
    assert found["bytes_read"] == grouped * 26
    assert found["bytes_written"] == grouped * (2 * 8 + 12)
    assert 0 < grouped <= found["clusters"]
    assert found["share_of_copy"] > 0


def test_a_whole_model_counts_bytes_of_each_memory() -> None:
    session = SessionConfig(device="cpu", cache="wave", wave=CONFIG, dtype="float32")
    found = device_decode.measure("builtin", 300, session, None, lambda line: None, steps=3)
    assert found["tokens"] == 300
    assert found["steps"] == 3
    near, bus = (found["bytes_per_token"][name] for name in ("gpu", "bus"))
    # Of the embedding one row is read.
    assert found["weight_bytes"] / 2 < near < 2 * found["weight_bytes"]
    assert bus == 0
    assert found["elsewhere"]["tokens_per_s"] == pytest.approx(1e12 / near)


def test_all_on_a_cpu_writes_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parts that a CPU has; each is written, one that fails keeps nobody from the next."""
    monkeypatch.setattr(device_decode, "STEPS", 2)

    def fails(*given: Any, **named: Any) -> Any:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(everything.attention, "run", fails)
    monkeypatch.setattr(everything.decode, "run", lambda *given: {"results": []})
    monkeypatch.setattr(device_decode, "measure", lambda *given, **named: {"ms": 1.0})
    words = ["bench", "all", "--device", "cpu", "--tokens", "16384", "--json"]
    assert main([*words, "--model", "builtin", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["attention"] == {"error": "RuntimeError: no such kernel"}
    assert found["decode"] == {"ms": 1.0}
    assert found["prefill"] == {"results": []}
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"bench-all.json", *(f"bench-all-{n}.json" for n in PARTS)}
    assert json.loads((tmp_path / "bench-all-decode.json").read_text()) == {"ms": 1.0}


PARTS = ("attention", "decode", "prefill")


def test_what_would_begin_too_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    options = AllOptions(device="cpu", tokens=16_384, model="builtin", minutes=1e-9)
    found = everything.run(options, lambda line: None)
    assert all("minutes had passed" in found[name]["left_out"] for name in PARTS)


def test_all_parts_of_a_gpu_are_there() -> None:
    parts = everything._Parts(AllOptions(), torch.device("cuda"), "builtin", lambda line: None)
    assert list(parts.all()) == [
        *("attention", "attention-long", "score", "buffer", "decode", "prefill")
    ]


def test_the_shape_of_the_model_is_qwen() -> None:
    with everything._model("Qwen2.5-7B") as folder:
        model = find_model(
            SpeedOptions(
                model=folder, random_weights=True, n_gen=(1,), session=SessionConfig(device="cpu")
            ),
            lambda line: None,
        )
    assert model.name == AllOptions().model
    assert 7.5e9 < model.parameters < 7.7e9
    assert 15e9 < model.weight_bytes < 15.4e9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("all --tokens 100", "--tokens is 100"),
        ("all --minutes 0", "--minutes is 0.0"),
        ("all --vram 0", "--vram"),
        ("buffer --device auto", "--device is auto"),
        ("all --device cuda", "no usable NVIDIA GPU was found"),
        ("buffer --device cuda", "no usable NVIDIA GPU was found"),
    ],
)
def test_bad_input_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert main(["bench", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_a_share_of_its_own_on_a_gpu() -> None:
    def share(*words: str) -> float:
        parser = BENCHES["buffer"].parser()
        return BENCHES["buffer"].options(parser.parse_args(words)).share  # type: ignore[attr-defined]

    assert (share(), share("--device", "cuda"), share("--share", "7")) == (10.0, 5.0, 7.0)
    with pytest.raises(UsageError):
        share("--share", "0")
