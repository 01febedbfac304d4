from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrolocal.cli import chat_parser, ingest_parser, main, sampling_given, session_config
from retrolocal.config import SessionConfig
from retrolocal.errors import SettingsError, UsageError
from retrolocal.paths import library_dir
from retrolocal.settings import SETTINGS, apply_settings, config_file, given_settings

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "retrolocal").mkdir()
    return tmp_path / "retrolocal" / "config.toml"


def shown(capsys: Captured, *words: str) -> dict[str, Any]:
    assert main(["config", "--json", *words]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def one_line(capsys: Captured) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_file_is_in_the_platforms_place(file: Path) -> None:
    assert config_file() == file
    assert given_settings() == {}


def test_later_wins(file: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(capsys)["settings"]["device"]["from"] == "default"
    file.write_text('device = "cpu"\nmodel = "org/file"\ntemp = 1\n')
    monkeypatch.setenv("RETROLOCAL_MODEL", "org/variable")
    facts = shown(capsys, "--temp", "0.25")
    assert (facts["file"], facts["file_exists"]) == (str(file), True)
    settings = facts["settings"]
    assert settings["device"] == {"value": "cpu", "from": "file", "where": str(file)}
    variable = {"value": "org/variable", "from": "environment", "where": "$RETROLOCAL_MODEL"}
    assert settings["model"] == variable
    assert settings["temp"] == {"value": 0.25, "from": "flag", "where": "--temp"}
    assert settings["top-k"] == {"value": 40, "from": "default", "where": ""}
    assert shown(capsys, "-m", "org/flag")["settings"]["model"]["value"] == "org/flag"
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert f"file: {file}\n" in text
    assert "| org/variable" in text
    assert "$RETROLOCAL_MODEL" in text


def test_a_chat_and_an_ingest_take_what_is_set(file: Path) -> None:
    file.write_text(
        'temp = 0\nthreads = 3\nstore-type = "bf16"\nbudget = 0.5\noffline = true\npredict = 7\n'
    )
    parser = chat_parser()
    apply_settings(parser)
    arguments = parser.parse_args([])
    assert sampling_given(arguments) == {"temperature": 0.0}
    config = session_config(arguments)
    assert (config.threads, config.offline, config.wave.budget) == (3, True, 0.5)
    assert (config.wave.store_type, arguments.predict) == ("bf16", 7)
    given = parser.parse_args(["--temp=1.5", "--threads=1", "--cache-type-k=q4_0", "--budget=auto"])
    assert sampling_given(given) == {"temperature": 1.5}
    config = session_config(given)
    assert (config.threads, config.wave.store_type, config.wave.budget) == (1, "int4", None)
    parser = ingest_parser()
    apply_settings(parser)
    assert session_config(parser.parse_args(["x"])).threads == 3


def test_memory_and_bits_may_be_set_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('ram = "4G"\nvram = "6G"\nquant = "int8"\n')
    parser = chat_parser()
    apply_settings(parser)

    def config(*words: str) -> SessionConfig:
        return session_config(parser.parse_args(words))

    usual = config()
    assert (usual.ram, usual.vram, usual.quant) == (4 << 30, 6.0, "int8")
    # A bound of what is not used is no contradiction unless it is typed.
    assert (config("--device=cuda").ram, config("--device=cpu").vram) == (0, None)
    assert (config("--ram=0").ram, config("--vram=1G", "--quant=none").vram) == (0, 1.0)
    with pytest.raises(UsageError, match="leave it out on a GPU"):
        config("--ram=1G", "--device=cuda")
    monkeypatch.setenv("RETROLOCAL_RAM", "512M")
    apply_settings(parser)
    assert config().ram == 512 << 20


def test_every_setting_is_an_option_of_chat_and_its_default_is_no_other() -> None:
    defaults = vars(chat_parser().parse_args([]))
    for setting in SETTINGS:
        if not setting.is_option:
            continue
        default = defaults[setting.place or setting.destination]
        assert default in (setting.default, None), setting.name
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


def test_every_default_may_be_written_down(file: Path) -> None:
    lines = [f"{s.name} = {json.dumps(s.default)}" for s in SETTINGS if s.default is not None]
    file.write_text("\n".join(lines))
    assert len(given_settings()) == len(lines)
    parser = chat_parser()
    apply_settings(parser)
    assert session_config(parser.parse_args([])) == session_config(chat_parser().parse_args([]))


def test_the_library_may_lie_elsewhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f'library = "{tmp_path}/books"')
    assert library_dir() == tmp_path / "books"
    file.write_text('library = "books"')
    assert library_dir() == file.parent / "books"
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(tmp_path / "other"))
    assert library_dir() == tmp_path / "other"


def test_whoever_named_the_library_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    file.write_text('library = "/dev/null"')
    assert main(["library", "list"]) == 1
    assert f"/dev/null is not a folder; give library in {file} a folder" in one_line(capsys)
    monkeypatch.setenv("RETROLOCAL_LIBRARY", "/dev/zero")
    assert main(["library", "list"]) == 1
    assert "/dev/zero is not a folder; give RETROLOCAL_LIBRARY a folder" in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thread = 1", "unknown key 'thread'; did you mean threads?"),
        ("store_type = 'int8'", "unknown key 'store_type'; did you mean store-type?"),
        ("colour = 'red'", "unknown key 'colour'; remove it (retrolocal config lists all keys)"),
        ("[sampling]\ntemp = 1", "unknown key 'sampling'"),
        ("password = 'x'", "unknown key 'password'"),
        ("temp = 'hot'", "temp is 'hot'; give a number"),
        ("temp = -1", "temp is -1; it must be 0 (greedy) or more"),
        ("temp = nan", "temp is nan; give a finite number"),
        ("temp = 1979-05-27", "temp is datetime.date(1979, 5, 27); give a number"),
        ("threads = 1.5", "threads is 1.5; give a whole number"),
        ("threads = true", "threads is True; give a whole number"),
        ("threads = 100000", "threads is 100000; give 0 (automatic) to 512"),
        ("top-p = [1]", "top-p is [1]; give a number"),
        ("offline = 'yes'", "offline is 'yes'; give true or false"),
        ("model = ''", "model is empty"),
        ("model = 3", "model is 3; give a string"),
        ("device = 'gpu'", "device is 'gpu'; give one of auto, cpu, cuda"),
        ("budget = 'all'", "budget is 'all'; give a number"),
        ("budget = 2", "budget is 2; give auto or a fraction"),
        ("library = ' '", "library is empty; give a folder"),
        ("ram = 'much'", "ram is 'much'; give a size, such as 4G"),
        ("vram = '0'", "vram is 0; give a size above 0, such as 24G"),
        ("quant = 'int3'", "quant is 'int3'; give one of none, int8, int4"),
        ("temp = 1\ntemp = 2", "is not valid TOML"),
        ("temp : 1", "is not valid TOML"),
        ("a = " + "[" * 5000, "is not valid TOML"),
        ("x = '" + "y" * 500 + "'", "unknown key 'x'"),
        ("temp = '" + "y" * 500 + "'", "...; give a number"),
    ],
    ids=lambda value: value[:24],
)
def test_what_makes_no_sense_is_one_line_with_file_key_and_value(
    file: Path, text: str, words: str, capsys: Captured
) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        given_settings()
    message = str(caught.value)
    assert message.startswith(str(file))
    assert words in message
    assert "\n" not in message
    assert main(["chat", "-p", "q"]) == main(["config"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["chat", "--help"]) == 0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (1 << 20) + b"x", None], ids=str)
def test_a_file_that_is_none(file: Path, content: bytes | None, capsys: Captured) -> None:
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert main(["config"]) == 1
    captured = capsys.readouterr()
    assert "| default" in captured.out
    assert captured.err.startswith(f"retrolocal: {file}")
    assert captured.err.count("\n") == 1


def test_all_is_shown_beside_what_makes_no_sense(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    file.write_text("bogus = 3\nthreads = 2\ntemp = 'hot'\nlibrary = 'books'")
    monkeypatch.setenv("RETROLOCAL_DEVICE", "gpu")
    assert main(["config", "--json"]) == 1
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert set(facts["settings"]) == {setting.name for setting in SETTINGS}
    assert facts["settings"]["threads"]["value"] == 2
    assert facts["settings"]["temp"]["from"] == "default"
    assert facts["folders"]["library"] == str(file.parent / "books")
    for problem, words in zip(facts["problems"], ("'bogus'", "'hot'", "'gpu'"), strict=True):
        assert words in problem
    assert captured.err == "".join(f"retrolocal: {problem}\n" for problem in facts["problems"])
    assert main(["library", "list"]) == 1
    assert "unknown key 'bogus'; remove it" in one_line(capsys)
    file.write_text("threads = 2")
    assert main(["config"]) == 2
    assert "$RETROLOCAL_DEVICE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DEVICE", "gpu", "$RETROLOCAL_DEVICE: device is 'gpu'; give one of auto, cpu, cuda"),
        ("LIBRARY", " ", "$RETROLOCAL_LIBRARY: library is empty; give a folder"),
    ],
)
def test_a_variable_that_makes_no_sense(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RETROLOCAL_{name}", value)
    with pytest.raises(UsageError) as caught:
        given_settings()
    assert words in str(caught.value)


def test_another_file_may_be_named_and_must_be_there(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    file.write_text("temp = 1")
    monkeypatch.setenv("RETROLOCAL_CONFIG", str(tmp_path / "mine.toml"))
    assert main(["config"]) == 1
    assert "mine.toml: there is no such file ($RETROLOCAL_CONFIG)" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("temp = 0.5")
    assert given_settings()["temp"].value == 0.5


@pytest.mark.parametrize("words", [["--temp", "hot"], ["--temp", "-1"], ["--fast"], ["x"]], ids=str)
def test_wrong_flags(words: list[str], capsys: Captured) -> None:
    assert main(["config", *words]) == 2
    one_line(capsys)
