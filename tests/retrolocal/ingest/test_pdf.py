from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrolocal.errors import DocumentError
from retrolocal.ingest import Document, open_document, read_document
from retrolocal.ingest.content import Options
from retrolocal.ingest.guard import Limits
from retrolocal.ingest.pdf import read_pdf
from retrolocal.ingest.source import open_source

WritePdf = Callable[..., Path]
TEXT = "Grüße (aus) Köln – “quoted”.\nA second line of the page."


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        read_document(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def page(document: Document, number: int) -> str:
    found = document.pages[number - 1]
    assert found.number == number
    return document.text[found.start : found.end]


def test_text_and_pages(write_pdf: WritePdf) -> None:
    document = read_document(write_pdf([TEXT, "Another page, quite alone."]))
    assert document.text == f"{TEXT}\nAnother page, quite alone."
    assert page(document, 2) == "Another page, quite alone."
    assert document.page_at(len(TEXT) + 1) == 2
    assert document.notes == ()


def test_raised_characters_stay_on_their_line(write_pdf: WritePdf, tmp_path: Path) -> None:
    stream = "Tj 7 Ts /F1 7 Tf (2) Tj 0 Ts /F1 11 Tf ( + b is the sum.) "
    path = write_pdf([TEXT])
    raw = path.read_bytes().replace(b"A second line of the page.) Tj", f"a) {stream}Tj".encode())
    path.write_bytes(raw)
    assert "a2 + b is the sum." in read_document(path).text


def test_protected(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT], user="sesame")
    assert refusal(path) == (
        f"{path} is protected by a password; give it with --password (or RETROLOCAL_PDF_PASSWORD)"
    )
    assert refusal(path, password="x").endswith("by a password, and the one given is wrong")
    assert read_document(path, password="sesame").text == TEXT


def test_bookmarks_are_chapters(write_pdf: WritePdf) -> None:
    pages = ["Preface.\nTo the reader.\nI.  The Start of\nit all\nmore", "still more", "II\nEnd"]
    marks = [("Größe", 0), ("The start of it all", 0), (" ", 1), ("Part", 2), ("II", 2)]
    document = read_document(write_pdf(pages, bookmarks=marks))
    assert [(c.title, document.text[c.start : c.end]) for c in document.chapters] == [
        ("Größe", "Preface.\nTo the reader."),
        ("The start of it all", "I. The Start of\nit all\nmore\nstill more"),
        ("II", "II\nEnd"),
    ]


def test_some_pages(write_pdf: WritePdf) -> None:
    path = write_pdf(
        [f"Page number {n}, all of it." if n != 4 else None for n in range(1, 9)],
        bookmarks=[("One", 0), ("Five", 4), ("Eight", 7)],
    )
    with open_document(path, Options(pages=((2, 5), (8, 99)))) as unread:
        document = unread.read()
    assert [p.number for p in document.pages] == [2, 3, 4, 5, 8]
    assert document.text[document.pages[3].start : document.pages[3].end] == page_text(5)
    assert document.page_at(len(document.text) - 1) == 8
    assert [c.title for c in document.chapters] == ["Five", "Eight"]
    assert document.notes == ("page 4 is pictures without text; run OCR to have them read",)
    assert document.extractor.endswith(" pages=2-5,8-99")
    assert refusal(path, pages=((9, 12),)).endswith("has 8 pages; --pages names none of them")


def page_text(number: int) -> str:
    return f"Page number {number}, all of it."


def test_pages_of_what_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    message = refusal(path, pages=((1, 1),))
    assert message.endswith("is plain text, which has no pages; leave --pages out")


def test_restricted_copying_is_told(write_pdf: WritePdf) -> None:
    document = read_document(write_pdf([TEXT], user="", permissions=-20))
    assert document.text == TEXT
    assert document.notes == ("the author has restricted copying from this PDF",)


def test_scanned(write_pdf: WritePdf) -> None:
    assert refusal(write_pdf([None] * 3)).endswith(
        ": 3 of 3 pages are pictures without text; "
        "run OCR first (for example ocrmypdf in.pdf out.pdf)"
    )


def test_partly_scanned(write_pdf: WritePdf) -> None:
    document = read_document(write_pdf([TEXT, None, None, TEXT, None, TEXT, TEXT]))
    assert document.notes == ("pages 2-3, 5 are pictures without text; run OCR to have them read",)
    assert page(document, 2) == ""
    assert len(document.pages) == 7


def test_no_text_and_no_pictures(write_pdf: WritePdf) -> None:
    assert refusal(write_pdf(["", ""])).endswith("has no text")


def test_garbage_needs_force(write_pdf: WritePdf) -> None:
    shifted = TEXT[:5] + "".join(chr(ord(c) + 3) if c.islower() else c for c in "plain text " * 40)
    path = write_pdf([shifted])
    message = refusal(path)
    assert "its text layer looks like garbage (its letters make no words)" in message
    assert "it begins with “Grüße" in message
    assert "--force" in message
    assert "sodlq" in read_document(path, force=True).text


def test_truncated(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT] * 3)
    path.write_bytes(path.read_bytes()[:200])
    assert "damaged PDF" in refusal(path)


def test_no_end_mark(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT])
    path.write_bytes(path.read_bytes().rpartition(b"startxref")[0])
    document = read_document(path)
    assert document.text == TEXT
    assert "cut off" in document.notes[0]


def test_only_the_magic(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.7\n")
    assert "damaged PDF" in refusal(path)


def test_page_loop(write_pdf: WritePdf) -> None:
    assert refusal(write_pdf([TEXT], loop=True)).endswith("can be read")


def test_page_count_is_not_believed(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT], count=1_000_000_000)
    try:
        assert read_document(path).text == TEXT
    except DocumentError as error:
        assert "claims" in str(error)  # noqa: PT017


def test_damaged_pages_are_told(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT, TEXT, TEXT])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"8 0 R", b"9 9 R").replace(b"[6 0 R 9 9 R", b"[6 0 R 3 0 R"))
    document = read_document(path)
    assert document.text.count("Köln") == 2


@pytest.mark.parametrize("seed", range(6))
def test_noise_gives_text_or_one_line(write_pdf: WritePdf, seed: int) -> None:
    path = write_pdf([TEXT, None, TEXT])
    raw = bytearray(path.read_bytes())
    noise = random.Random(seed)
    for _ in range(30):
        raw[noise.randrange(9, len(raw))] = noise.randrange(256)
    path.write_bytes(raw)
    try:
        assert read_document(path).text
    except DocumentError as error:
        assert str(path) in str(error)  # noqa: PT017


def test_bomb(write_pdf: WritePdf, flate_bomb: bytes) -> None:
    path = write_pdf([flate_bomb])
    with (
        open_source(path) as source,
        pytest.raises(DocumentError, match=r"needed more than 0\.25 GB of memory"),
    ):
        read_pdf(source, Options(), Limits(memory_bytes=1 << 28))


def test_too_much_output(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT] * 40)
    with open_source(path) as source, pytest.raises(DocumentError, match="more than 0 MB of text"):
        read_pdf(source, Options(), Limits(output_bytes=1000))


def test_nothing_stays_open(write_pdf: WritePdf) -> None:
    path = write_pdf([TEXT])
    before = set(os.listdir("/dev/fd"))
    read_document(path)
    assert set(os.listdir("/dev/fd")) <= before


def test_english_book(material: Path) -> None:
    document = read_document(material / "documents/pride-and-prejudice_pg1342.pdf")
    assert len(document.pages) == 234
    for words in ("exercising great self-denial, for", "half-hour", "project gutenberg-tm license"):
        assert words in document.text.lower()
    assert "It is a truth universally acknowledged" in page(document, 2)
    assert not set(document.text) & set("\x02\ufffe\r\f")


def test_german_script(material: Path) -> None:
    document = read_document(material / "documents/GeoTopo_de_cc-by-sa.pdf")
    assert len(document.pages) == 117
    assert "Schwarz-Weiß" in document.text
    assert "unterschiedlichem Mittelpunkt" in document.text
    assert "gilt a2 + b2 = c2, wobei c die Hypotenuse" in document.text
    assert "METRISCHE RÄUME" not in document.text
    assert "Überlagerung" in page(document, 62)
    assert [chapter.title for chapter in document.chapters[:3]] == [
        "1 Topologische Grundbegriffe",
        "1.1 Topologische Räume",
        "1.2 Metrische Räume",
    ]
    for chapter in document.chapters[:3]:
        assert document.text[chapter.start :].startswith(chapter.title)
