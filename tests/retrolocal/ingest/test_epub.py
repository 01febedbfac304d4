"""EPUBs are made here, member by member; no test needs a file."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from retrolocal.errors import DocumentError
from retrolocal.ingest import Document, read_document, zipped

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
)
ONE = "<html><head><title/></head><body><h1>First</h1><p>Once.</p></body></html>"
TWO = "<html><body><p>Much later.</p></body></html>"
NAV = (
    '<?xml version="1.0"?><html xmlns:epub="http://www.idpf.org/2007/ops"><head><title/></head>'
    '<nav epub:type="landmarks"><a href="one.xhtml">Start</a></nav>'
    '<nav epub:type="toc"><ol>{}</ol></nav></html>'
)
WriteEpub = Callable[..., Path]


def package(names: list[str], extra: str = "", spine: str = "") -> str:
    items = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(names)
    )
    references = "".join(f'<itemref idref="i{n}"/>' for n in range(len(names)))
    return (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0">'
        f"<manifest>{items}{extra}</manifest><spine {spine}>{references}</spine></package>"
    )


@pytest.fixture
def write_epub(tmp_path: Path) -> WriteEpub:
    """Writes an EPUB of `pages` (name -> XHTML) and other members; the table of contents is a
    list of links of a nav document, or the body of an NCX."""

    def write(
        pages: Mapping[str, str | bytes],
        *,
        nav: str | None = None,
        ncx: str | None = None,
        names: list[str] | None = None,
        members: Mapping[str, str | bytes] | None = None,
    ) -> Path:
        extra = spine = ""
        all_members: dict[str, str | bytes] = {"META-INF/container.xml": CONTAINER}
        if nav is not None:
            extra = '<item id="nav" href="nav.xhtml" properties="nav"/>'
            all_members["OEBPS/nav.xhtml"] = NAV.format(nav)
        if ncx is not None:
            extra = '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
            spine = 'toc="ncx"'
            all_members["OEBPS/toc.ncx"] = f"<ncx><navMap>{ncx}</navMap></ncx>"
        all_members["OEBPS/book.opf"] = package(names or list(pages), extra, spine)
        all_members.update({f"OEBPS/{name}": page for name, page in pages.items()})
        all_members.update(members or {})
        path = tmp_path / "book.epub"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
            for name, content in all_members.items():
                archive.writestr(name, content)
        return path

    return write


def chapters(document: Document) -> list[tuple[str, str]]:
    return [(c.title, document.text[c.start : c.end]) for c in document.chapters]


def refusal(path: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        read_document(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path)).strip(" :")


def test_table_of_contents(write_epub: WriteEpub) -> None:
    nav = '<li><a href="one.xhtml">Chapter  1</a></li><li><a href="two.xhtml">Chapter 2</a></li>'
    document = read_document(write_epub({"one.xhtml": ONE, "two.xhtml": TWO}, nav=nav))
    assert document.text == "First\n\nOnce.\n\nMuch later."
    assert chapters(document) == [("Chapter 1", "First\n\nOnce."), ("Chapter 2", "Much later.")]
    assert document.notes == ()
    assert document.extractor.startswith("epub/1 selectolax/")


def test_table_of_contents_of_epub_2(write_epub: WriteEpub) -> None:
    point = "<navPoint><navLabel><text>{}</text></navLabel><content src='{}'/>{}</navPoint>"
    ncx = point.format("Book", "one.xhtml", point.format("Part", "t%77o.xhtml", ""))
    document = read_document(write_epub({"one.xhtml": ONE, "two.xhtml": TWO}, ncx=ncx))
    assert [title for title, _ in chapters(document)] == ["Book", "Part"]


def test_table_of_contents_that_makes_no_sense(write_epub: WriteEpub) -> None:
    document = read_document(write_epub({"one.xhtml": ONE}, ncx="<navPoint>"))
    assert [title for title, _ in chapters(document)] == ["First"]
    assert document.notes == (
        "missing in the file, and left out: a table of contents that makes sense",
    )


def test_chapters_inside_a_file(write_epub: WriteEpub) -> None:
    page = (
        "<html><body><p>Front.</p><h2 id='c1'>I</h2><p>a</p><p><a name='c2'/>II</p><p>b</p></body>"
    )
    nav = '<a href="one.xhtml#c1">Uno</a><a href="one.xhtml#c2">Due</a><a href="one.xhtml#no">x</a>'
    document = read_document(write_epub({"one.xhtml": page}, nav=nav))
    assert chapters(document) == [("Uno", "I\n\na"), ("Due", "II\n\nb")]
    assert document.chapter_at(0) is None


def test_without_a_table_of_contents(write_epub: WriteEpub) -> None:
    document = read_document(write_epub({"one.xhtml": ONE, "two.xhtml": TWO}))
    assert chapters(document) == [("First", "First\n\nOnce.\n\nMuch later.")]


def test_odd_links(write_epub: WriteEpub) -> None:
    pages = {"one.xhtml": ONE, "a b.xhtml": TWO}
    names = ["one.xhtml#o8", "a%20b.xhtml", "gone.xhtml", "../../../etc/passwd"]
    document = read_document(write_epub(pages, names=names))
    assert document.text == "First\n\nOnce.\n\nMuch later."
    assert document.notes == (
        "missing in the file, and left out: OEBPS/gone.xhtml, ../../etc/passwd",
    )


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "utf-8-sig"])
def test_encodings(write_epub: WriteEpub, encoding: str) -> None:
    page = f'<?xml version="1.0" encoding="{encoding}"?><html><body>Größe</body></html>'
    assert read_document(write_epub({"one.xhtml": page.encode(encoding)})).text == "Größe"


ENCRYPTION = (
    '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData>'
    '<e:EncryptionMethod Algorithm="{}"/>'
    '<e:CipherData><e:CipherReference URI="{}"/></e:CipherData></e:EncryptedData></encryption>'
)


def test_protected_by_drm(write_epub: WriteEpub) -> None:
    encryption = ENCRYPTION.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "OEBPS/one.xhtml")
    path = write_epub(
        {"one.xhtml": bytes(range(256))}, members={"META-INF/encryption.xml": encryption}
    )
    assert refusal(path).startswith("is an e-book protected by DRM")


def test_obfuscated_fonts_are_no_drm(write_epub: WriteEpub) -> None:
    encryption = ENCRYPTION.format("http://www.idpf.org/2008/embedding", "OEBPS/font.otf")
    path = write_epub({"one.xhtml": ONE}, members={"META-INF/encryption.xml": encryption})
    assert read_document(path).text == "First\n\nOnce."


def test_bomb(write_epub: WriteEpub) -> None:
    path = write_epub({"one.xhtml": "<html><body><p>x" + " " * (4 << 20)})
    assert refusal(path).startswith("inflates more than 200-fold; it may be a decompression bomb")
    assert read_document(path, force=True).text == "x"


def test_a_bomb_that_nothing_refers_to_is_never_inflated(write_epub: WriteEpub) -> None:
    path = write_epub({"one.xhtml": ONE}, members={"bomb": bytes(64 << 20)})
    assert read_document(path).text == "First\n\nOnce."


def test_bytes_are_counted_not_believed(
    write_epub: WriteEpub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipped, "MAX_BYTES", 1 << 20)
    path = write_epub({f"{n}.xhtml": f"{n}" * (700 << 10) for n in range(2)})
    assert refusal(path).startswith("inflates to more than 1 MB")


def test_too_many_members(write_epub: WriteEpub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipped, "MAX_MEMBERS", 5)
    path = write_epub({"one.xhtml": ONE}, members={f"{n}": "" for n in range(5)})
    assert refusal(path).startswith("holds more than 5 files")


def test_nested_markup(write_epub: WriteEpub) -> None:
    path = write_epub(
        {"one.xhtml": "<html>" + "<div><p>x</p>" * 30_000},
    )
    assert refusal(path).startswith("reading stopped: its parts are nested too deep")


def test_entity_bomb(write_epub: WriteEpub) -> None:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    bomb = f'<!DOCTYPE p [<!ENTITY e0 "x">{entities}]><package><spine>&e12;</spine></package>'
    path = write_epub({"one.xhtml": ONE}, members={"OEBPS/book.opf": bomb})
    assert "is a damaged EPUB" in refusal(path)


@pytest.mark.parametrize("kept", [0.3, 0.8, 0.99])
def test_truncated(write_epub: WriteEpub, kept: float) -> None:
    path = write_epub({"one.xhtml": ONE})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert refusal(path).startswith("is a damaged EPUB (truncated or overwritten)")


def test_flipped_byte(write_epub: WriteEpub) -> None:
    path = write_epub({"one.xhtml": ONE * 50})
    data = bytearray(path.read_bytes())
    data[data.index(b"OEBPS/one.xhtml") + 30] ^= 0x10
    path.write_bytes(data)
    assert refusal(path).startswith("is a damaged EPUB")


@pytest.mark.parametrize("seed", range(8))
def test_noise_gives_text_or_one_line(write_epub: WriteEpub, seed: int) -> None:
    path = write_epub({"one.xhtml": ONE, "two.xhtml": TWO}, nav="<a href='one.xhtml'>x</a>")
    noise = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(1 << (seed % 4 * 2)):
        data[noise.randrange(60, len(data))] = noise.randrange(256)
    path.write_bytes(data)
    try:
        assert read_document(path).text
    except DocumentError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


def test_another_name(write_epub: WriteEpub) -> None:
    path = write_epub({"one.xhtml": ONE})
    document = read_document(path.rename(path.with_suffix(".pdf")))
    assert document.text == "First\n\nOnce."
    assert document.notes == ("the name ends in .pdf but the content is EPUB; read as EPUB",)


@pytest.mark.parametrize(
    "members",
    [
        {"META-INF/container.xml": "<container/>"},
        {"META-INF/container.xml": "not xml"},
        {"OEBPS/book.opf": "<package/>"},
    ],
)
def test_not_a_book(write_epub: WriteEpub, members: dict[str, str]) -> None:
    assert refusal(write_epub({"one.xhtml": ONE}, members=members)).startswith("is a damaged EPUB")


def test_no_text(write_epub: WriteEpub) -> None:
    assert refusal(write_epub({"one.xhtml": "<html><body><img/></body></html>"})) == "has no text"


def test_archive_in_an_archive_is_not_a_book(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "x")
    path = tmp_path / "a.epub"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    assert refusal(path) == "is not a format that can be read (found: ZIP archive)"


def test_real_books(material: Path) -> None:
    alice = read_document(material / "documents/alice.epub")
    assert tuple(alice.chapters[n].title for n in (2, 7)) == (
        "Down The Rabbit-Hole",
        "Pig And Pepper",
    )
    assert alice.chapter_at(alice.text.index("Curiouser and curiouser")) == "The Pool Of Tears"
    romeo = read_document(material / "documents/romeo-and-juliet_feedbooks.epub")
    place = romeo.text.index("wherefore art thou Romeo")
    assert romeo.chapter_at(place) == "SCENE II. Capulet's orchard."
