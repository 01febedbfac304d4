"""What the doctor says about this machine, and about others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrolocal import doctor
from retrolocal.cli import main
from retrolocal.doctor import Line, examined, shown

NAMES = [
    "python",
    "torch",
    "cpu",
    "gpu",
    "triton",
    "memory",
    "builtin",
    "config",
    "cache",
    "library",
    "state",
    "hub",
    "terminal",
]


def test_every_line_is_well_or_says_what_to_do() -> None:
    lines = list(examined(offline=True))
    assert [line.name for line in lines] == NAMES
    assert all((line.state == "ok") <= (not line.advice) for line in lines)
    assert all(line.advice for line in lines if line.state != "ok")
    assert all("\n" not in shown(line) for line in lines)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--offline", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] == (code == 0)
    assert [line["name"] for line in answer["lines"]] == NAMES


def test_a_problem_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Line("torch", "problem", "2.5.0", "pip install 'torch>=2.11'")
    monkeypatch.setattr(doctor, "examined", lambda **options: iter([bad]))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == ("torch      problem  2.5.0: pip install 'torch>=2.11'\n")


def test_old_versions_and_folders_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "TORCH", (99, 0))
    assert doctor._torch().state == "problem"
    blocked = tmp_path / "file"
    blocked.write_text("")
    line = doctor._folder("cache", blocked / "deeper", "it is slower")
    assert line.state == "problem"
    assert "it is slower" in line.advice


def test_the_hub_is_asked_and_its_silence_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    line = doctor._hub(offline=False)
    assert line.state == "note"
    assert "no route" in line.found
    assert doctor._hub(offline=True).state == "ok"


def test_a_broken_configuration_is_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "config.toml"
    broken.write_text("library = [")
    monkeypatch.setenv("RETROLOCAL_CONFIG", str(broken))
    assert main(["doctor", "--offline"]) == 1
    (line,) = (one for one in capsys.readouterr().out.splitlines() if "problem" in one)
    assert line.startswith(f"config     problem  {broken}")
    assert doctor._library().found == "not looked at"
    broken.write_text("bogus = 3\ntemp = 'hot'")
    line = shown(doctor._config())
    assert "unknown key 'bogus'; remove it" in line
    assert "(and 1 more): correct that" in line


def test_a_folder_that_is_no_library_is_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(tmp_path))
    assert doctor._library().state != "problem"
    (tmp_path / "letters.txt").write_text("mine")
    line = doctor._library()
    assert line.state == "problem"
    assert "not a retrolocal library" in line.found


def test_a_variable_that_makes_no_sense_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HTTPS_PROXY", "http://x:abc")
    assert doctor._hub(offline=True).state == "ok"
    assert "$HTTPS_PROXY" in doctor._hub(offline=False).found
    monkeypatch.setenv("HF_ENDPOINT", "http://x:abc")
    line = doctor._hub(offline=True)
    assert line.state == "problem"
    assert "$HF_ENDPOINT is 'http://x:abc'" in line.found
