from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from retrolocal.errors import DocumentError
from retrolocal.ingest import Options, open_document, read_document
from retrolocal.ingest.formats import FORMATS

WritePdf = Callable[..., Path]
LINE = "It was a bright cold day in April."
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def refusal(path: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        read_document(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).strip()


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"# Title\r\n\r\nText")
    document = read_document(str(path))
    assert document.text == "# Title\n\nText"
    assert (document.name, document.pages, document.notes) == ("a.md", (), ())
    assert len(document.digest) == 64


def test_pdf_named_txt_is_read_as_pdf(write_pdf: WritePdf) -> None:
    path = write_pdf([LINE])
    renamed = path.rename(path.with_suffix(".txt"))
    document = read_document(renamed)
    assert document.text == LINE
    assert document.notes == ("the name ends in .txt but the content is PDF; read as PDF",)


def test_text_named_pdf_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_text("just text")
    document = read_document(path)
    assert document.text == "just text"
    assert document.notes == (
        "the name ends in .pdf but the content is plain text; read as plain text",
    )


def test_text_about_pdf_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Every PDF begins with %PDF-1.7.")
    assert read_document(path).pages == ()


@pytest.mark.parametrize("comment", ["<!---->", "<!-- x -->\n"])
def test_comments_before_something_else_are_passed_once(tmp_path: Path, comment: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(comment * 300 + "text")
    assert read_document(path).text.endswith("text")
    path.write_text(comment * 300 + "<html>text")
    assert read_document(path).text == "text"


def test_unknown_suffix_gives_no_note(tmp_path: Path) -> None:
    path = tmp_path / "notes.log"
    path.write_text("just text")
    assert read_document(path).notes == ()


def test_junk_before_the_pdf(write_pdf: WritePdf) -> None:
    path = write_pdf([LINE])
    path.write_bytes(b"\x00junk\n" + path.read_bytes())
    assert read_document(path).text == LINE


@pytest.mark.parametrize("suffix", [".pdf", ".txt"])
@pytest.mark.parametrize("cut", ["beginning", "both ends"])
def test_a_pdf_without_its_beginning_is_no_text(
    make_pdf: Callable[..., bytes], tmp_path: Path, suffix: str, cut: str
) -> None:
    whole = make_pdf([LINE, LINE])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole[20:] if cut == "beginning" else whole[20:].partition(b"xref")[0])
    assert refusal(path) == (
        "is a damaged PDF (truncated or overwritten); get it again or repair it"
    )


def test_a_text_that_shows_a_pdf_is_text(make_pdf: Callable[..., bytes], tmp_path: Path) -> None:
    readable = re.sub(rb"[\x00-\x08\x0e-\x1f]", b".", make_pdf([LINE, LINE]))
    shown = readable.decode("ascii").replace("%PDF-1.4", "The file:")
    path = tmp_path / "a.txt"
    path.write_text(f"How a PDF is made.\x02 \u201cObjects\u201d are numbered.\n{shown}")
    assert LINE in read_document(path).text
    path.write_text(f"{LINE} A PDF ends with startxref, a number and %%EOF; objects with endobj.")
    assert read_document(path).text.startswith(LINE)


@pytest.mark.parametrize("content", [LINE, None], ids=["text", "pdf"])
def test_stdin(
    content: str | None, make_pdf: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_pdf([LINE]) if content is None else content.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    document = read_document("-")
    assert (document.name, document.text, document.notes) == ("stdin", LINE, ())
    assert len(document.pages) == (content is None)


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with open_document(path) as unread:
        path.write_text("new text")
        with pytest.raises(DocumentError, match="changed while"):
            unread.read()


def test_what_made_a_text_is_known_before_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# A")
    with open_document(path, name="b/a.md") as unread:
        assert (unread.name, unread.size, unread.format.title) == ("b/a.md", 3, "Markdown")
        document = unread.read()
    assert (document.digest, document.extractor) == (unread.digest, unread.extractor)
    assert document.name == "b/a.md"
    with open_document(path, Options(encoding="CP1252", password="x", force=True)) as other:
        assert other.extractor == f"{unread.extractor} encoding=cp1252"
    assert re.fullmatch(r"markdown/1 charset-normalizer/[\d.]+", unread.extractor)


def test_versions_of_formats() -> None:
    assert len({found.key for found in FORMATS}) == len(FORMATS)
    for found in FORMATS:
        for library in found.libraries:
            assert version(library)


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a\n")
    (tmp_path / "b").write_bytes(b"a\r\n")
    a, b = read_document(tmp_path / "a"), read_document(tmp_path / "b")
    assert a.text == b.text
    assert a.digest != b.digest


@pytest.mark.parametrize("name", ["a.txt", "a.pdf"])
def test_empty(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    assert refusal(path) == "is empty"


def test_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf \r\n\t")
    assert refusal(path) == "has no text"


def zipped(*members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member in members:
            content = "application/epub+zip" if member == "mimetype" else "<x/>"
            archive.writestr(member, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG image"),
        (zipped("a.txt"), "ZIP archive"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "XLSX spreadsheet"),
        (zipped("mimetype").replace(b"epub+zip", b"vnd.oasi"), "ZIP archive"),
        (OLE + bytes(600), "old Office document; save it as DOCX"),
        (
            OLE + bytes(600) + "EncryptedPackage".encode("utf-16-le"),
            "Office document with a password; save it without one",
        ),
        (b"\x7fELF\x02\x01\x01" + bytes(60), "ELF program"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "WAV audio"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "MP4 video or HEIC image"),
        (bytes(range(256)) * 8, "unknown binary"),
        (bytes(4096), "unknown binary"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".pdf"])
def test_foreign_content_is_named(tmp_path: Path, data: bytes, found: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert refusal(path) == f"is not a format that can be read (found: {found})"


@pytest.mark.parametrize(
    ("head", "size", "message"),
    [
        (b"plain", 2 << 30, "has 2.1 GB; at most 0.5 GB of plain text can be read; split it"),
        (b"<html><p>", 2 << 30, "has 2.1 GB; at most 0.3 GB of HTML can be read; split it"),
        (b"%PDF-1.7\n", 9 << 30, "has 9.7 GB; at most 8.6 GB of PDF can be read; split it"),
    ],
)
def test_too_large(tmp_path: Path, head: bytes, size: int, message: str) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    assert refusal(path) == message


def test_unknown_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    for name in ("klingon", "rot13", "hex", "a\0b"):
        with pytest.raises(DocumentError, match="is not a text encoding"):
            read_document(path, encoding=name)


def test_reading_loads_no_torch_and_no_parser(write_pdf: WritePdf, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text("<html><p>x")
    code = (
        "import sys; from retrolocal.ingest import read_document;"
        f"read_document({str(write_pdf([LINE]))!r}); read_document({str(page)!r});"
        "print([m for m in ('torch', 'numpy', 'pypdfium2_raw', 'selectolax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
