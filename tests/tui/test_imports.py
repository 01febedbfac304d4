"""What is loaded when: the application only where it is shown, the model only on its thread."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split("\n")[-2].split()}


def test_the_application_loads_no_torch() -> None:
    names = loaded(
        "import retrolocal.tui.app, retrolocal.tui.launch, retrolocal.tui.session_engine, "
        "retrolocal.tui.source_view"
    )
    assert "textual" in names
    assert not {"torch", "tokenizers", "huggingface_hub", "jinja2"} & names


@pytest.mark.parametrize(
    "code",
    [
        "import retrolocal.tui.plain",
        "import retrolocal.tui.launch",
        "import retrolocal.tui.terminal, retrolocal.tui.clipboard, retrolocal.tui.bridge",
        "import retrolocal.cli; retrolocal.cli.main(['chat', '--help'])",
        "import retrolocal.cli; retrolocal.cli.main(['chat', '-m', '/nowhere', '-p', 'x'])",
    ],
)
def test_textual_is_loaded_only_where_it_is_shown(code: str) -> None:
    assert "textual" not in loaded(code)
