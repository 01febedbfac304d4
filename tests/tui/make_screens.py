"""Makes the pictures of the README, or those that the tests compare with.

python tests/tui/make_screens.py             docs/screens/*.svg
python tests/tui/make_screens.py snapshots   tests/tui/snapshots/*.svg
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SNAPSHOTS = HERE / "snapshots"
VERSIONS = SNAPSHOTS / "versions.txt"
README = {
    "answered": "answered",
    "prefilling": "prefilling",
    "source": "source",
    "answering-80x24": "small",
}
"""Scene -> name of the picture in docs/screens."""


def versions() -> str:
    """What a picture depends on besides this repository."""
    return "".join(f"{name} {version(name)}\n" for name in ("textual", "rich"))


def main(words: list[str]) -> None:
    from scenes import SCREENS, picture

    os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
    for name in ("NO_COLOR", "TMUX", "SSH_TTY", "SSH_CONNECTION"):
        os.environ.pop(name, None)
    folder = SNAPSHOTS if words == ["snapshots"] else HERE.parents[1] / "docs" / "screens"
    wanted = dict.fromkeys(SCREENS) if words == ["snapshots"] else README
    folder.mkdir(parents=True, exist_ok=True)
    for name, renamed in wanted.items():
        with tempfile.TemporaryDirectory() as state:
            svg, _ = picture(name, Path(state))
        (folder / f"{renamed or name}.svg").write_text(svg, "utf-8")
        print(folder / f"{renamed or name}.svg")
    if words == ["snapshots"]:
        VERSIONS.write_text(versions(), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
