"""What a user gets: the wheel, the public names, the help."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest

import retrolocal
from retrolocal.bench.command import BENCHES
from retrolocal.cli import chat_parser, main
from retrolocal.doctor import doctor_parser
from retrolocal.evaluate.command import EVALUATIONS
from retrolocal.library.command import COMMANDS as LIBRARY
from retrolocal.library.command import parser_of
from retrolocal.model_commands import COMMANDS as MODELS
from retrolocal.model_commands import parser_of as model_parser_of
from retrolocal.plan import plan_parser
from retrolocal.settings_command import config_parser

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "retrolocal": "retrolocal",
    "kernels": "retrolocal/kernels",
    "models": "retrolocal/models",
    "tui": "retrolocal/tui",
}


def sources() -> set[str]:
    """Every file of the four folders as the wheel should name it."""
    found = set()
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_the_wheel_holds_every_source_file_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", *PACKAGES):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            "out",
            ".",
        ],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = (tree / "out").glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")}
    inside = {n for n in names if ".dist-info/" not in n}
    assert inside == sources()
    assert {n.partition("/")[0] for n in inside} == {"retrolocal"}


def test_public_names_are_sorted_and_there() -> None:
    assert retrolocal.__all__ == sorted(retrolocal.__all__)
    assert all(getattr(retrolocal, name) is not None for name in retrolocal.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = retrolocal.nothing


HELP = [
    ["--help"],
    ["--version"],
    ["chat", "--help"],
    ["bench", "--help"],
    ["eval", "--help"],
    ["library", "--help"],
    ["config", "--help"],
    *([name, "--help"] for name in MODELS),
    ["plan", "--help"],
    ["doctor", "--help"],
    *(["bench", name, "--help"] for name in BENCHES),
    *(["eval", name, "--help"] for name in EVALUATIONS),
    *(["library", name, "--help"] for name in LIBRARY),
]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from retrolocal.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'tokenizers', 'huggingface_hub', 'rich', 'jinja2'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"retrolocal {retrolocal.__version__}\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["help"], 0),
        (["bake"], 2),
        (["chat", "--fast"], 2),
        (["bench"], 2),
        (["bench", "help"], 0),
        (["bench", "cake"], 2),
        (["bench", "decode", "--fast"], 2),
        (["eval"], 2),
        (["eval", "attention", "--fast"], 2),
    ],
    ids=str,
)
def test_exit_codes_of_usage(
    words: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    captured = capsys.readouterr()
    assert (captured.err.count("\n") == 1) == (code == 2 and bool(words))


PARSERS = {
    "chat": chat_parser,
    "config": config_parser,
    **{name: partial(model_parser_of, name) for name in MODELS},
    "plan": plan_parser,
    "doctor": doctor_parser,
    **{f"bench {name}": one.parser for name, one in BENCHES.items()},
    **{f"eval {name}": one.parser for name, one in EVALUATIONS.items()},
    **{f"library {name}": partial(parser_of, name) for name in LIBRARY},
}


@pytest.mark.parametrize("command", PARSERS)
def test_every_option_has_a_help_text(command: str) -> None:
    for action in PARSERS[command]()._actions:
        assert action.help, action.option_strings


def test_readme_names_the_commands_that_ci_runs() -> None:
    readme, ci = (ROOT / "README.md").read_text("utf-8"), (ROOT / ".ci/run").read_text("utf-8")
    for command in ("retrolocal chat -m builtin", "install.sh --dev"):
        assert command in readme
        assert f"readme_command '{command}'" in ci
