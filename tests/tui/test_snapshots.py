"""The screens as pictures.

Each is compared with the SVG in `snapshots`: its words always, every style and cell when the
installed Textual and Rich are those it was made with. After a wanted change look at them and run
`python tests/tui/make_screens.py snapshots`. (No snapshot plug-in: the well-known one pins an old
pytest, and what is needed of it is these lines.)
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from make_screens import SNAPSHOTS, VERSIONS, versions
from scenes import SCREENS, picture


def words(svg: str) -> list[str]:
    """The pieces of text of a picture, in order."""
    found = re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.DOTALL)
    return [html.unescape(text).replace("\xa0", " ").strip() for text in found]


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_looks_as_it_did(name: str, tmp_path: Path) -> None:
    kept = (SNAPSHOTS / f"{name}.svg").read_text("utf-8")
    svg, _ = picture(name, tmp_path / "state")
    (tmp_path / f"{name}.svg").write_text(svg, "utf-8")
    assert words(svg) == words(kept), f"see {tmp_path / name}.svg"
    if VERSIONS.read_text("utf-8") == versions():
        assert svg == kept, f"only colours or places differ: see {tmp_path / name}.svg"


def test_there_is_no_picture_too_many() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.svg")} == set(SCREENS)


def test_without_colour_every_state_has_a_sign_and_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    svg, text = picture("answering", tmp_path / "state")
    frame = {"ff5f57", "febc2e", "28c840", "c5c8c6"}
    colours = set(re.findall(r"#([0-9a-f]{6})", svg)) - frame
    assert all(colour[:2] == colour[2:4] == colour[4:] for colour in colours), colours
    assert "answering" in text
    assert "Esc stop" in text
