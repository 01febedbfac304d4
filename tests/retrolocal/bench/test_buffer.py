"""`retrolocal bench buffer`: a whole small run, what it leaves behind, and what stops it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retrolocal.bench.buffer import _file, _Layer
from retrolocal.bench.synthetic import structured_answer
from retrolocal.bench.trace import guesses, recall, replay
from retrolocal.cli import main
from retrolocal.config import WaveConfig
from retrolocal.wave.buffer.policy import POLICIES
from retrolocal.wave.buffer.prefetch import Prefetcher
from retrolocal.wave.clustering import cluster_segment
from retrolocal.wave.zones import fewest_tokens

SHAPE = {"tokens": 4096, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "steps": 6}
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in SHAPE.items()]


@pytest.fixture(scope="module")
def layer() -> _Layer:
    return _Layer.of(structured_answer(**SHAPE))


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    words = [*WORDS, "--repeats=1", "--share=20", "--shares=5,20,100", f"--folder={tmp_path}"]
    assert main(["bench", "buffer", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert os.listdir(tmp_path) == []
    assert {one.name for one in threading.enumerate() if "prefetch" in one.name} == set()
    assert threading.active_count() <= threads + 2
    steady = 4 + 64
    assert found["store_bytes"] == (4096 - steady) * 2 * 2 * 32 * 2
    assert 0 < found["bytes_per_step"] < found["store_bytes"]
    assert 0 < found["foresight"]["recall"] <= 1
    for work in ("attention", "layer"):
        ram, file, prefetch = (found[work][kind] for kind in ("ram", "file", "prefetch"))
        assert ram["bytes_fetched"] == ram["missed"] == 0
        assert file["bytes_ahead"] == 0
        assert file["missed"] + file["hit_ratio"] * found["retrieved_clusters"] == pytest.approx(
            found["retrieved_clusters"]
        )
        assert prefetch["missed"] <= file["missed"]
        assert found[work]["file_over_ram"] == pytest.approx(file["ms"] / ram["ms"])
        assert file["ms"] >= file["fetch_ms"] > 0
    assert [row["cache_percent"] for row in found["results"]] == [5, 20, 100]
    for row, share in zip(found["results"], (5, 20, 100), strict=True):
        assert row["cache_bytes"] <= found["store_bytes"] * share / 100
        for policy in POLICIES:
            assert 0 <= row[policy]["hit_ratio"] < 1
    assert found["results"][1]["sieve"]["hit_ratio"] == found["attention"]["file"]["hit_ratio"]


def test_recorded_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = structured_answer(**SHAPE)
    recorded = tmp_path / "recorded.safetensors"
    save_file({"q": data.q, "k": data.k, "v": data.v}, recorded)
    assert (
        main(["bench", "buffer", f"--data={recorded}", "--repeats=1", "--steps=3", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["steps"], found["kv_heads"]) == (4096, 3, 2)


@pytest.mark.parametrize("words", ["buffer", "attention", "attention --prompt"])
def test_a_text_that_is_too_short(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    fewest = fewest_tokens(WaveConfig())
    assert main(["bench", *words.split(), f"--tokens={fewest - 1}"]) == 2
    errors = capsys.readouterr().err
    assert f"--tokens is {fewest - 1:,} and nothing is clustered below {fewest:,}" in errors
    assert "making" not in errors


@pytest.mark.parametrize("bench", ["buffer", "attention"])
def test_recorded_data_that_is_too_short(
    bench: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = structured_answer(**SHAPE | {"tokens": 1000})
    recorded = tmp_path / "recorded.safetensors"
    save_file({"q": data.q, "k": data.k, "v": data.v}, recorded)
    for tokens, said in ((131_072, f"{recorded} has 1,000 tokens"), (999, "--tokens is 999")):
        assert main(["bench", bench, f"--data={recorded}", f"--tokens={tokens}"]) == 2
        assert f"{said} and nothing is clustered below" in capsys.readouterr().err


def test_the_fewest_tokens_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    fewest = fewest_tokens(WaveConfig())
    words = [f"--tokens={fewest}", *WORDS[1:4], "--steps=1", "--repeats=1", "--json"]
    assert main(["bench", "attention", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["steps"]) == (fewest, 1)


def test_recorded_data_of_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = structured_answer(**SHAPE)
    recorded = tmp_path / "recorded.safetensors"
    save_file({"q": data.q[:1], "k": data.k, "v": data.v}, recorded)
    assert main(["bench", "buffer", f"--data={recorded}"]) == 1
    assert "has queries of 1 step; at least 2 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["missing", "full"])
def test_a_folder_that_will_not_do(
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "missing" if problem == "missing" else tmp_path
    if problem == "full":
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 0, 1))
    assert main(["bench", "buffer", *WORDS, f"--folder={folder}"]) == 1
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("retrolocal: ")]
    assert "--folder" in line
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_behind_however_a_run_ends(layer: _Layer, tmp_path: Path) -> None:
    with _file(layer, tmp_path, lambda _: None) as files:
        assert not list(tmp_path.iterdir())
        assert sum(file.bytes for file in files) == sum(block.numel() for block in layer.blocks)


def test_the_file_holds_what_a_fetch_should_return(layer: _Layer, tmp_path: Path) -> None:
    """Every cluster's keys and values, against the tokens that the index says are in it."""
    data = structured_answer(**SHAPE)
    seen = torch.zeros(2, 4096)
    with _file(layer, tmp_path, lambda _: None) as files:
        prefetcher = Prefetcher(0)
        buffer = layer.buffer(list(files), prefetcher, 50)
        keys = np.flatnonzero(layer.lengths)
        heads = buffer.table.heads(keys)
        with buffer.fetch(keys) as step:
            for key, head, address in zip(keys, heads, step.addresses, strict=True):
                raw = ctypes.string_at(int(address), int(layer.lengths[key]))
                rows = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).view(-1, 2, 32)
                for k, v in rows:
                    place = (data.k[head] == k).all(1) & (data.v[head] == v).all(1)
                    assert int(place.sum()) == 1
                    seen[head] += place
        buffer.close()
    assert seen[:, 4:-64].eq(1).all()
    assert int(seen.sum()) == 2 * (4096 - 68)


def test_a_trace_holds_the_clusters_that_weigh_most(layer: _Layer) -> None:
    """Against exact attention: what is retrieved outweighs as many clusters chosen by chance."""
    data = structured_answer(**SHAPE)
    segment, places = cluster_segment(data.k[:, 4:-64], data.v[:, 4:-64], WaveConfig())
    for q in data.q:
        keys = layer.recorder.retrieved(q)
        assert len(np.unique(keys)) == len(keys)
        assert (layer.lengths[keys] > 0).all()
        for head in range(2):
            inside = keys[keys // segment.clusters == head] % segment.clusters
            logits = q.view(2, 2, 32)[head].float() @ data.k[head, 4:-64].float().T / 32**0.5
            mass = torch.softmax(logits, dim=1).sum(0)[places[head].long()]
            of = torch.arange(segment.clusters).repeat_interleave(segment.starts[head].diff())
            chosen = torch.isin(of, torch.from_numpy(inside))
            assert 1000 <= int(chosen.sum()) <= 1024
            assert float(mass[chosen].sum()) > 2 * float(mass.sum()) * 1024 / len(mass)


def test_guesses_are_as_near_as_they_say() -> None:
    q = structured_answer(**{**SHAPE, "head_dim": 128, "steps": 30}).q
    for foresight in (0.5, 0.9, 1.0):
        guess = guesses(q, foresight, seed=1)
        cosine = torch.nn.functional.cosine_similarity(q.float(), guess.float(), dim=2)
        assert float(cosine.mean()) == pytest.approx(foresight, abs=0.03)
        assert torch.allclose(guess.float().norm(dim=2), q.float().norm(dim=2), rtol=0.02)
    assert torch.allclose(guesses(q, 1.0, seed=1), q, rtol=0.02)


def test_recall_counts_what_was_guessed() -> None:
    trace = [np.array([1, 2, 3]), np.array([4])]
    assert recall(trace, [np.array([2, 3, 9]), np.array([5])]) == 0.5
    assert recall(trace, trace) == 1.0


def test_a_cache_of_everything_misses_each_cluster_once() -> None:
    lengths = np.array([64, 640, 64, 128], np.int64)
    trace = [np.array([0, 1]), np.array([1, 2]), np.array([0, 1, 2])]
    for policy in POLICIES:
        found = replay(trace, lengths, 4000, 64, policy)
        assert found.hit_ratio == pytest.approx(4 / 7)
        assert found.missed_bytes == pytest.approx((64 + 640 + 64) / 3)
