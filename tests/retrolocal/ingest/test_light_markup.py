from __future__ import annotations

from pathlib import Path

import pytest

from retrolocal.ingest import read_document
from retrolocal.ingest.light_markup import markdown_headings, rst_headings


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("# One\ntext\n\n## Two ##\n### C#\n", ["One", "Two", "C#"]),
        ("   # In\n    # code\n#hashtag\n####### seven\n#\n", ["In", ""]),
        ("Over\n====\n\ntext\n\nUnder\n-\n", ["Over", "Under"]),
        ("text\n\n---\n\n* item\n---\n\n| a |\n|---|\n> q\n---\n", []),
        ("```sh\n# no\n```\n# yes\n~~~\n# no\n```\n# no\n~~~~\n# yes too", ["yes", "yes too"]),
        ("```\n# never closed\n", []),
        ("---\ntitle: x\n# no\n---\n# yes\n", ["yes"]),
        ("---\n# yes\n", ["yes"]),
    ],
)
def test_markdown(text: str, titles: list[str]) -> None:
    found = list(markdown_headings(text))
    assert [title for _, title in found] == titles
    for start, title in found:
        line = text[start:].partition("\n")[0]
        assert title in line
        assert start == 0 or text[start - 1] == "\n"


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("Title\n=====\n\ntext\n\nSub\n---\n\nmore", ["Title", "Sub"]),
        ("=======\n Over\n=======\n\nx\n\nLonger title\n~~~~\n", ["Over", "Longer title"]),
        ("text\n\n----\n\ntext\nmore\n----\n", []),
        ("Long title\n==\n", []),
        ("=====  =====\nA      B\n=====  =====\n1      2\n=====  =====\n", []),
        ("+---+\n| a |\n+---+\n", []),
        ("::\n\n    Code\n    ----\n", []),
        ("=====\nA\nB\n=====\n", []),
    ],
)
def test_rst(text: str, titles: list[str]) -> None:
    assert [title for _, title in rst_headings(text)] == titles


def test_an_overlined_title_begins_with_its_line() -> None:
    assert list(rst_headings("a\n\n====\nOver\n====\n")) == [(3, "Over")]


@pytest.mark.parametrize("line", ["#" + " " * 200_000 + "x", "`" * 200_000, "=" * 200_000 + "x"])
def test_long_lines_cost_no_more_than_their_length(line: str) -> None:
    for headings in (markdown_headings, rst_headings):
        list(headings(f"{line}\n{line}\n"))


def test_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"Intro\r\n\r\n# One\r\ntext\r\n\r\n# \r\n# Two\r\n")
    document = read_document(path)
    assert document.text == "Intro\n\n# One\ntext\n\n# \n# Two\n"
    assert [c.title for c in document.chapters] == ["One", "Two"]
    first = document.chapters[0]
    assert document.text[first.start : first.end] == "# One\ntext\n\n#"
    assert read_document(path.rename(tmp_path / "a.txt")).chapters == ()


def test_rst_document(tmp_path: Path) -> None:
    path = tmp_path / "a.rst"
    path.write_text("Guide\n=====\n\n.. note:: x\n")
    document = read_document(path)
    assert [c.title for c in document.chapters] == ["Guide"]
    assert document.extractor.startswith("rst/1 ")
