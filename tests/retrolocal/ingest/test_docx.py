"""Word documents are made here, member by member; no test needs a file."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retrolocal.errors import DocumentError
from retrolocal.ingest import Document, Options, read_document
from retrolocal.ingest.guard import Limits
from retrolocal.ingest.source import open_source
from retrolocal.ingest.zipped import read_docx

TYPES = '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
RELATIONS = (
    '<Relationships><Relationship Type="http://x/officeDocument" Target="{}"/></Relationships>'
)
STYLES = (
    '<w:styles xmlns:w="w"><w:style w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Own"><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>'
    '<w:style w:styleId="Text"><w:name w:val="Body"/><w:pPr><w:outlineLvl w:val="9"/></w:pPr>'
    "</w:style></w:styles>"
)
Read = Callable[..., Document]


def p(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a document whose body is the given XML; keywords are further members of `word/`."""

    def write(body: str, main: str = "word/document.xml", **parts: str) -> Path:
        path = tmp_path / "a.docx"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("[Content_Types].xml", TYPES)
            archive.writestr("_rels/.rels", RELATIONS.format(main))
            document = f'<w:document xmlns:w="w" xmlns:m="m"><w:body>{body}</w:body></w:document>'
            archive.writestr(main.lstrip("/"), document)
            for name, content in parts.items():
                archive.writestr(f"word/{name}.xml", content)
        return path

    return write


@pytest.fixture
def read(write: Callable[..., Path]) -> Read:
    def read(body: str, **parts: str) -> Document:
        return read_document(write(body, **parts))

    return read


def refusal(path: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        read_document(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path)).strip(" :")


def test_paragraphs(read: Read) -> None:
    document = read(p("One ") + p("two &amp; ") + "<w:p/>" + p("three"))
    assert document.text == "One\ntwo &amp;\nthree".replace("&amp;", "&")
    assert (document.chapters, document.notes, document.extractor) == ((), (), "docx/1")


def test_characters_inside_a_paragraph(read: Read) -> None:
    body = (
        '<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:tab/>'
        "<w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t><w:softHyphen/></w:r>"
        "<w:hyperlink><w:r><w:t>link</w:t></w:r></w:hyperlink>"
        "<m:oMath><m:r><m:t>x+1</m:t></m:r></m:oMath>"
        "<w:r><w:instrText>PAGE</w:instrText></w:r></w:p>"
    )
    assert read(body).text == "a\tb\nc-dlinkx+1"


def test_headings_are_chapters(read: Read) -> None:
    body = p("Front") + p("Eins", "berschrift1") + p("Text", "Text") + p("Zwei", "Own") + p("x")
    document = read(body, styles=STYLES)
    assert [c.title for c in document.chapters] == ["Eins", "Zwei"]
    assert document.text == "Front\n\nEins\nText\n\nZwei\nx"
    assert document.chapter_at(document.text.index("Text")) == "Eins"


def test_headings_without_a_style_sheet(read: Read) -> None:
    assert [c.title for c in read(p("A", "Heading2") + p("b", "Normal")).chapters] == ["A"]


def test_tables_are_read_by_row(read: Read) -> None:
    def row(*cells: str) -> str:
        return "<w:tr>" + "".join(f"<w:tc>{cell}</w:tc>" for cell in cells) + "</w:tr>"

    inner = f"<w:tbl>{row(p('x'), p('y'))}</w:tbl>"
    table = f"<w:tbl>{row(p('Name'), p('Age', 'Heading1'))}{row(p('A') + p('B'), inner)}</w:tbl>"
    document = read(p("Before") + table + p("After"))
    assert document.text == "Before\nName\tAge\nA B\tx\ty\n\nAfter"
    assert document.chapters == ()


def test_notes_stand_at_the_end(read: Read) -> None:
    body = (
        '<w:p><w:r><w:t>Text</w:t><w:endnoteReference w:id="1"/><w:t> more</w:t>'
        '<w:footnoteReference w:id="7"/></w:r></w:p>'
    )
    footnotes = (
        '<w:footnotes xmlns:w="w"><w:footnote w:id="0"><w:p/></w:footnote>'
        f'<w:footnote w:id="7">{p("Foot")}{p("note")}</w:footnote></w:footnotes>'
    )
    endnotes = f'<w:endnotes xmlns:w="w"><w:endnote w:id="1">{p("End")}</w:endnote></w:endnotes>'
    document = read(body, footnotes=footnotes, endnotes=endnotes)
    assert document.text == "Text[1] more[2]\n\n[2] Foot note\n\n[1] End"


def test_what_was_deleted_or_is_there_twice(read: Read) -> None:
    body = (
        "<w:p><w:del><w:r><w:delText>old</w:delText><w:t>old</w:t></w:r></w:del>"
        "<w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>"
        '<w:p><a:x xmlns:a="a"><a:Choice><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p>'
        "</w:txbxContent></a:Choice><a:Fallback><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r>"
        "</w:p></w:txbxContent></a:Fallback></a:x></w:p>"
    )
    assert read(body).text == "new\nbox"


@pytest.mark.parametrize("main", ["/word/document2.xml", "word/document.xml"])
def test_main_part(write: Callable[..., Path], main: str) -> None:
    path = write(p("x"), main=main, **{"../word/document": "<junk/>"} if "2" in main else {})
    assert read_document(path).text == "x"


def test_deep_nesting(read: Read) -> None:
    assert read("<w:sdt>" * 20_000 + p("deep") + "</w:sdt>" * 20_000).text == "deep"


def test_bomb(write: Callable[..., Path]) -> None:
    path = write(p("x" + " " * (4 << 20)))
    assert refusal(path).startswith("inflates more than 200-fold")
    assert read_document(path, force=True).text == "x"


def test_memory_is_bounded(write: Callable[..., Path]) -> None:
    path = write(p("x" * (300 << 20)))
    with (
        open_source(path) as source,
        pytest.raises(DocumentError, match=r"needed more than 0\.25 GB of memory"),
    ):
        read_docx(source, Options(force=True), Limits(memory_bytes=1 << 28))


def test_entities(write: Callable[..., Path]) -> None:
    path = write(p("x"), main="word/document.xml")
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    external = '<!ENTITY f SYSTEM "file:///etc/passwd">'
    for declared, name in ((f'<!ENTITY e0 "x">{entities}', "e12"), (external, "f")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                "word/document.xml",
                f"<!DOCTYPE d [{declared}]><d><b><p><t>x&{name};</t></p></b></d>",
            )
        assert refusal(path).startswith("is a damaged DOCX")


@pytest.mark.parametrize("seed", range(8))
def test_noise_gives_text_or_one_line(write: Callable[..., Path], seed: int) -> None:
    path = write(p("One", "Heading1") + p("text") * 20, styles=STYLES)
    noise = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(1 << (seed % 4 * 2)):
        data[noise.randrange(4, len(data))] = noise.randrange(256)
    path.write_bytes(data)
    try:
        assert read_document(path).text
    except DocumentError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("kept", [0.8, 0.99])
def test_truncated(write: Callable[..., Path], kept: float) -> None:
    path = write(p("text"))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert refusal(path).startswith("is a damaged DOCX")
    path.write_bytes(data[:60])
    assert refusal(path).endswith("(found: ZIP archive that was cut off)")


def test_with_a_zip_password(write: Callable[..., Path]) -> None:
    path = write(p("text"))
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            data[place + at] |= 1
    path.write_bytes(data)
    assert refusal(path) == "is an encrypted DOCX; save it without a password"
