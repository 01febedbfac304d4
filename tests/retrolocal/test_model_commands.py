"""pull, list, show and rm as a user types them, against a Hub on loopback."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FakeHub, Fault, environment_of

from retrolocal import load
from retrolocal.amounts import size
from retrolocal.cli import main
from retrolocal.paths import quantised_dir

Captured = pytest.CaptureFixture[str]


def objects(capsys: Captured) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def one_line(capsys: Captured) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_pull_then_use(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    assert main(["pull", "org/model"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0].startswith("org/model: fetching 4 files, ")
    assert f"into {tmp_path / 'hub'} (" in lines[0]
    assert lines[-1].startswith("org/model is here: ")
    hub.faults.append(Fault("/", status=500, times=10**6))
    words = ["chat", "-m", "org/model", "-p", "who?", "-n", "5", "--temp", "0", "-q"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


def test_pull_as_objects(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    assert main(["pull", "org/model@main", "--json"]) == 0
    told = objects(capsys)
    assert [one["event"] for one in told] == ["start", "progress", "done"]
    start, progress, done = told
    total = sum(map(len, hub.files.values()))
    folder = str(tmp_path / "hub" / "models--org--model" / "snapshots" / COMMIT)
    assert start["model"] == done["model"] == "org/model@main"
    assert (start["commit"], start["files"], start["folder"]) == (COMMIT, 4, folder)
    assert start["total_bytes"] == start["download_bytes"] == total
    assert start["free_bytes"] > 0
    assert (progress["done"], progress["total"]) == (total, total)
    assert set(progress) >= {"bytes_per_second", "seconds_left"}
    assert (done["folder"], done["downloaded_bytes"]) == (folder, total)
    assert main(["pull", "org/model", "--json"]) == 0
    again = objects(capsys)
    assert [one["event"] for one in again] == ["start", "done"]
    assert again[0]["download_bytes"] == again[1]["downloaded_bytes"] == 0


def test_pull_without_the_network(hub: FakeHub, capsys: Captured) -> None:
    assert main(["pull", "org/model", "--offline"]) == 1
    assert "the program is offline" in one_line(capsys)
    assert main(["pull", "org/model", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    hub.requests.clear()
    assert main(["pull", "org/model", "--offline"]) == 0
    assert hub.requests == []
    assert "was not asked for a newer version" in one_line(capsys)


def test_pull_refuses_before_the_weights(hub: FakeHub, capsys: Captured) -> None:
    config = json.loads(hub.files["config.json"]) | {"model_type": "mamba"}
    hub.files["config.json"] = json.dumps(config).encode()
    assert main(["pull", "org/model", "-q"]) == 1
    text = one_line(capsys)
    assert text.startswith("retrolocal: this model cannot be used: config.json: ")
    assert "mamba" in text
    assert not hub.asked("/cdn/")


def test_pull_says_when_the_machine_is_too_small(
    hub: FakeHub, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.fetching.machine_bytes", lambda: 1000)
    assert main(["pull", "org/model"]) == 0
    assert "this machine has 1.0 kB of memory: it cannot be used here" in capsys.readouterr().err


def test_pull_fetches_what_a_folder_hides(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert main(["pull", "org/model"]) == 0
    assert "org/model@main is the model on the Hub" in capsys.readouterr().err
    assert main(["show", "org/model@main", "--json"]) == 0
    [facts] = objects(capsys)
    assert facts["parameters"] > 0


def test_an_interrupted_pull_keeps_what_is_complete(hub: FakeHub, tmp_path: Path) -> None:
    hub.before_body = threading.Event()
    home = tmp_path / "home"
    # A job in the background ignores the signal, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "retrolocal", "pull", "org/model", "--json"],
        env=environment_of(hub.url, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    while not hub.asked("/cdn/"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert err.strip() == "retrolocal: stopped; what is complete is kept: start it again to go on"
    assert [json.loads(line)["event"] for line in out.splitlines()][-1] == "stopped"
    assert not [path for path in home.rglob("*") if "incomplete" in path.name]
    assert [path.name for path in home.rglob("config.json")] == ["config.json"]


def test_progress_on_a_terminal_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] += bytes(3_000_000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "retrolocal", "pull", "org/model"],
        env=environment_of(hub.url, tmp_path / "home"),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert process.wait() == 0
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    assert len(lines) == 4, lines
    assert lines[1].split("\r")[-1].removeprefix("\x1b[K").startswith("3.")
    assert "(100%)" in lines[1]
    assert lines[2].startswith("org/model is here")


def test_list(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    assert main(["list"]) == 0
    assert "No model is in the cache; -m builtin needs none." in capsys.readouterr().out
    main(["pull", "org/model", "-q"])
    hub.repositories["org/bert"] = dict(hub.files)
    hub.repositories["org/bert"]["config.json"] = b'{"model_type": "bert"}'
    main(["pull", "org/bert", "-q"])
    hub.repositories["org/half"] = dict(hub.files)
    hub.faults.append(Fault("/cdn/", status=404, times=99))
    main(["pull", "org/half", "-q"])
    capsys.readouterr()
    assert main(["ls", "--json"]) == 0
    [facts] = objects(capsys)
    assert facts["path"] == str(tmp_path / "hub")
    assert facts["problems"] == []
    found = {one["model"]: one for one in facts["models"]}
    states = {name: (one["state"], one["problem"]) for name, one in found.items()}
    assert states["org/model"] == ("ready", None)
    assert states["org/half"] == ("incomplete", "lacks model.safetensors")
    assert states["org/bert"][0] in ("incomplete", "unusable")
    ready = found["org/model"]
    assert (ready["revisions"], ready["commit"]) == (["main"], COMMIT)
    assert ready["bytes"] == sum(map(len, hub.files.values()))
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in states)


def test_show(hub: FakeHub, capsys: Captured, tiny_model: Path) -> None:
    assert main(["show", "org/model"]) == 1
    assert "retrolocal pull org/model" in one_line(capsys)
    main(["pull", "org/model", "-q"])
    assert main(["show", "org/model", "--json"]) == 0
    [facts] = objects(capsys)
    assert facts["family"] == "llama"
    assert (facts["layers"], facts["kv_heads"], facts["head_dim"]) == (2, 2, 16)
    assert facts["kv_bytes_per_token"] == 2 * 2 * 16 * 2 * 2
    assert facts["chat_template"] is True
    assert facts["dtype"] == "F32"
    assert main(["show", str(tiny_model)]) == 0
    assert "kv_bytes_per_token: 256 B" in capsys.readouterr().out
    assert main(["show", "builtin"]) == 0


def test_rm(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    assert main(["rm", "org/model"]) == 1
    assert "see retrolocal list" in one_line(capsys)
    main(["pull", "org/model", "-q"])
    assert main(["rm", "org/model@main", "--json"]) == 0
    [facts] = objects(capsys)
    assert facts["commits"] == [COMMIT]
    assert facts["bytes"] == sum(map(len, hub.files.values()))
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_waiting_for_the_hub_is_told(
    hub: FakeHub, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.faults.append(Fault("/resolve/", status=503, times=2))
    hub.faults.append(Fault("/cdn/", status=429, headers={"Retry-After": "7"}))
    assert main(["pull", "org/model"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("the Hub answers 503; trying again in ") for line in lines) == 1
    assert lines.count("the Hub answers 429; trying again in 8 s") == 1


def test_rm_takes_quantised_copies_along(
    hub: FakeHub, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.paths.cache_dir", lambda: tmp_path / "cache")
    main(["pull", "org/model", "-q"])
    hub.revisions["v1"] = "b" * 40
    main(["pull", "org/model@v1", "-q"])
    for quant in ("int8", "int4"):
        load("org/model", quant=quant).close()
    load("builtin", quant="int4").close()
    [weights] = {file for file in (tmp_path / "hub").rglob("blobs/*") if len(file.name) == 64}
    assert len(list(quantised_dir().iterdir())) == 3
    assert main(["rm", "org/model@v1", "--json"]) == 0
    assert objects(capsys)[0]["quantised_bytes"] == 0
    assert weights.exists()
    copies = sum(file.stat().st_size for file in quantised_dir().iterdir())
    assert main(["rm", "org/model"]) == 0
    [left] = quantised_dir().iterdir()
    assert f"{size(copies - left.stat().st_size)} of it quantised copies" in capsys.readouterr().out
    load("builtin", quant="int4").close()
    assert list(quantised_dir().iterdir()) == [left]


def test_doctor_deep_reads_every_byte(hub: FakeHub, capsys: Captured, tmp_path: Path) -> None:
    def deep() -> tuple[int, list[dict[str, Any]]]:
        code = main(["doctor", "--deep", "--offline", "--json"])
        lines = objects(capsys)[0]["lines"]
        return code, [line for line in lines if line["name"] in ("model", "models")]

    assert deep()[1][0]["found"] == "none in the cache of the Hub"
    main(["pull", "org/model", "-q"])
    capsys.readouterr()
    [line] = deep()[1]
    assert (line["state"], line["found"].partition("@")[0]) == ("ok", "org/model")
    [weights] = {file for file in (tmp_path / "hub").rglob("blobs/*") if len(file.name) == 64}
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(data)
    code, [line] = deep()
    assert code == 1
    assert line["found"].endswith(": model.safetensors: not as downloaded")
    assert main(["rm", line["advice"].split()[2].rstrip(",")]) == 0
    capsys.readouterr()
    assert deep()[1][0]["name"] == "models"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["pull"], 2),
        (["pull", "a/b", "c/d"], 2),
        (["pull", "nothing"], 1),
        (["pull", "/tmp"], 1),
        (["pull", "builtin"], 1),
        (["pull", "a/b@x", "--revision", "y"], 2),
        (["rm"], 2),
        (["rm", " "], 2),
        (["show", ""], 2),
        (["rm", "builtin"], 1),
        (["show", "./nowhere"], 1),
        (["show"], 2),
        (["list", "x"], 2),
        (["list", "--fast"], 2),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line(
    words: list[str], code: int, hub: FakeHub, capsys: Captured
) -> None:
    assert main(words) == code
    assert one_line(capsys).startswith("retrolocal: ")


def test_a_chat_fetches_the_model_that_was_named(hub: FakeHub, capsys: Captured) -> None:
    words = ["chat", "-m", "org/model", "-p", "who?", "-n", "5", "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["model"] == "org/model"
    assert "org/model: fetching 4 files" in captured.err
    assert main([*words, "--offline"]) == 0


def test_a_chat_without_a_model_says_which_one_answers(hub: FakeHub, capsys: Captured) -> None:
    assert main(["chat", "-p", "who?", "-n", "2"]) == 0
    assert "no model was chosen: using the built-in one" in capsys.readouterr().err
    assert hub.requests == []
