from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from retrolocal.errors import DocumentError, UsageError
from retrolocal.ingest import Document, Options, Unread, expand, folders, read_documents

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "book"
    folder.mkdir()
    return folder


def fill(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def names(*paths: Path | str) -> list[str | None]:
    return [file.name for file in expand(paths).files]


def test_a_folder_is_its_files_in_order(root: Path) -> None:
    files = ["b.md", "a/z.txt", "a/b/c.rst", "B.py", "a.txt", "Makefile", "ä.txt"]
    fill(root, dict.fromkeys(files, "text"))
    expected = sorted(files, key=lambda name: name.split("/"))
    assert names(root) == [f"book/{name}" for name in expected]
    assert expand([root]).notes == ()


def test_the_order_of_what_was_given_stays(root: Path, tmp_path: Path) -> None:
    fill(root, {"a.txt": "a", "b.txt": "b"})
    fill(tmp_path, {"z.txt": "z", "c.txt": "c"})
    chosen = expand([tmp_path / "z.txt", root, str(tmp_path / "c.txt")]).files
    assert [(Path(file.path).name, file.is_named) for file in chosen] == [
        ("z.txt", True),
        ("a.txt", False),
        ("b.txt", False),
        ("c.txt", True),
    ]


def test_the_working_folder_has_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, {"a.txt": "a"})
    monkeypatch.chdir(root)
    assert names(".") == ["book/a.txt"]


def test_hidden_files_and_folders_of_tools_are_passed_over(root: Path) -> None:
    hidden = [".env", ".git/config", "x/.hg/a", "CVS/Root", "node_modules/a.js", "__pycache__/a.py"]
    fill(root, dict.fromkeys([*hidden, "a.txt"], "text"))
    assert names(root) == ["book/a.txt"]
    assert expand([root]).notes == ()
    assert names(root / ".env") == [None]


def test_what_is_no_text_is_counted(root: Path) -> None:
    fill(root, {f"{n}.png": PNG for n in range(4)})
    fill(root, {"a.bin": bytes(range(256)) * 9, "a.xlsx": b"PK\x03\x04" + bytes(99), "a.txt": "a"})
    fill(root, {"utf16.txt": "Grüße".encode("utf-16"), "empty": b""})
    selection = expand([root])
    assert [file.name for file in selection.files] == ["book/a.txt", "book/utf16.txt"]
    assert selection.notes == (
        f"{root}: left out binary files (6): book/0.png, book/1.png, book/2.png, …",
        f"{root}: left out empty files (1): book/empty",
    )


def test_links_and_special_files_are_not_followed(root: Path, tmp_path: Path) -> None:
    fill(tmp_path, {"outside/secret.txt": "s"})
    fill(root, {"a.txt": "a"})
    (root / "link.txt").symlink_to(tmp_path / "outside/secret.txt")
    (root / "loop").symlink_to(root)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    selection = expand([root])
    assert [file.name for file in selection.files] == ["book/a.txt"]
    assert len(selection.notes) == 2
    assert "left out links (3): book/dangling, book/link.txt, book/loop" in selection.notes[0]
    assert "left out pipes, sockets or devices (1): book/pipe" in selection.notes[1]
    assert names(root / "link.txt") == [None]


def test_generated_files_are_left_out(root: Path) -> None:
    long_line = "x" * 5000
    fill(root, {"yarn.lock": "a", "app.min.js": long_line, "data.csv": "1,2\n" * (1 << 19)})
    fill(root, {"novel.txt": long_line * 400, "page.md": long_line, "small.json": "{}"})
    selection = expand([root])
    assert [file.name for file in selection.files] == [
        "book/novel.txt",
        "book/page.md",
        "book/small.json",
    ]
    assert [note.partition("left out ")[2] for note in selection.notes] == [
        "minified files (1): book/app.min.js",
        "files of more than 1 MB that are no documents (1): book/data.csv",
        "lock files (1): book/yarn.lock",
    ]
    assert names(root / "data.csv") == [None]


GITIGNORE = {
    ".gitignore": "*.log\n!keep.log\n/build/\ndocs/*.txt\n[z-a]\n# comment\n\\#odd\ntrailing \n",
    "a.log": "",
    "keep.log": "",
    "build/a.txt": "",
    "sub/build/a.txt": "",
    "docs/a.txt": "",
    "docs/deep/a.txt": "",
    "#odd": "",
    "trailing": "",
    "sub/.gitignore": "*\n!*.md\n!.gitignore\n!deep/\n",
    "sub/a.py": "",
    "sub/a.md": "",
    "sub/deep/b.md": "",
    "sub/deep/b.py": "",
    "sub/keep.log": "",
}


def test_gitignore_is_respected(root: Path) -> None:
    fill(root, {name: content or "text" for name, content in GITIGNORE.items()})
    assert names(root) == [
        "book/docs/deep/a.txt",
        "book/keep.log",
        "book/sub/a.md",
        "book/sub/deep/b.md",
    ]
    assert "what .gitignore names (" in expand([root]).notes[0]


def test_as_git_does(root: Path) -> None:
    fill(root, {name: content or "text" for name, content in GITIGNORE.items()})
    fill(root, {"inner/.gitignore": "/a.txt\n", "inner/a.txt": "x", "inner/b/a.txt": "x"})
    try:
        subprocess.run(["git", "init", "-q", root], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not installed: its own opinion was not asked")
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-co", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    own = {f"book/{name}" for name in listed.stdout.split() if "gitignore" not in name}
    assert set(names(root)) == own
    # Rules above the folder that was given hold as well, up to the repository's own folder.
    assert names(root / "docs") == ["docs/deep/a.txt"]
    fill(root.parent, {".gitignore": "*"})
    assert set(names(root)) == own


def test_a_file_is_read_once(root: Path) -> None:
    fill(root, {"a.txt": "a", "b.txt": "b"})
    (root / "hard.txt").hardlink_to(root / "b.txt")
    selection = expand([root, root / "a.txt", root])
    assert [(file.name, file.is_named) for file in selection.files] == [
        ("book/a.txt", True),
        ("book/b.txt", False),
    ]
    assert selection.notes == (f"{root / 'a.txt'} is given twice; it is read once",)


def test_stdin_is_one_document() -> None:
    assert names("-") == [None]
    with pytest.raises(UsageError, match="twice"):
        expand(["-", "-"])


def test_folders_without_text(root: Path) -> None:
    with pytest.raises(DocumentError, match=r"book holds no text$"):
        expand([root])
    fill(root, {"a.png": PNG})
    with pytest.raises(DocumentError, match=r"holds no text; .*left out binary files"):
        expand([root])


def test_too_many_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MAX_FILES", 3)
    fill(root, {f"{n}.txt": "x" for n in range(4)})
    with pytest.raises(DocumentError, match="more than 3 files"):
        expand([root])


def test_one_bad_file_does_not_stop_a_folder(root: Path) -> None:
    fill(root, {"a.txt": "a", "b.pdf": b"%PDF-1.7\n", "c.md": "# C"})
    remarks: list[str] = []
    found = list(read_documents([root], tell=remarks.append))
    assert [(d.name, d.text) for d in found] == [("book/a.txt", "a"), ("book/c.md", "# C")]
    assert len(remarks) == 1
    assert remarks[0].startswith(f"left out: {root / 'b.pdf'} is a damaged PDF")
    with pytest.raises(DocumentError, match="is a damaged PDF"):
        list(read_documents([root, root / "b.pdf"]))


def test_only_bad_files(root: Path) -> None:
    fill(root, {"b.pdf": b"%PDF-1.7\n"})
    with pytest.raises(DocumentError, match=r"no file could be read; the first: .*b\.pdf"):
        list(read_documents([root]))


def test_what_is_known_is_not_read_again(root: Path) -> None:
    fill(root, {"a.txt": "old", "b.txt": "new"})
    first, second = read_documents([root])
    kept = {(first.digest, first.extractor): first}
    asked: list[str] = []

    def find(unread: Unread) -> Document | None:
        asked.append(unread.name)
        return kept.get((unread.digest, unread.extractor))

    again = list(read_documents([root], find=find))
    assert again[0] is first
    assert again[1] == second
    assert asked == ["book/a.txt", "book/b.txt"]
    other = list(read_documents([root], Options(encoding="cp1252"), find=find))
    assert other[0] is not first
