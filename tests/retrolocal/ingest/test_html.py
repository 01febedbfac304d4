from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrolocal.errors import DocumentError
from retrolocal.ingest import Document, Options, read_document
from retrolocal.ingest.guard import Limits
from retrolocal.ingest.html import read_html
from retrolocal.ingest.source import open_source

Read = Callable[..., Document]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The document of a page given as text or bytes."""

    def read(page: str | bytes, name: str = "a.html", **options: str) -> Document:
        path = tmp_path / name
        path.write_bytes(page if isinstance(page, bytes) else page.encode())
        return read_document(path, **options)  # type: ignore[arg-type]

    return read


def titles(document: Document) -> list[str]:
    for chapter in document.chapters:
        assert document.text[chapter.start : chapter.end].startswith(chapter.title)
    return [chapter.title for chapter in document.chapters]


def test_what_a_browser_shows(read: Read) -> None:
    document = read(
        "<!doctype html><html><head><title>T</title><style>p{}</style></head><body>"
        "<script>var x;</script><noscript>n</noscript><template>t</template>"
        "<p>One &amp; <b>two</b>\n  three,<br>four.</p><p>Soft&shy;ly&nbsp;so</p>"
        "<div>a<div>b</div></div>c<!-- comment --></body></html>"
    )
    assert document.text == "One & two three,\nfour.\n\nSoftly so\n\na\nb\nc"
    assert (document.chapters, document.notes) == ((), ())


def test_lists_and_tables(read: Read) -> None:
    page = (
        "<ul><li><p>one</p><li>two<ul><li>in</ul></ul>"
        "<table><tr><th>A<th>B<tr><td><p>1</p><td>2</table>"
    )
    assert read(page).text == "one\ntwo\nin\n\nA\tB\n1\t2"


def test_preformatted_text_keeps_its_spaces(read: Read) -> None:
    page = "<p>Code:</p><pre>\ndef f():\n    <b>return</b> 1\n\n\n\tx</pre><p>End</p>"
    assert read(page).text == "Code:\n\ndef f():\n    return 1\n\n\n\tx\n\nEnd"


def test_headings_are_chapters(read: Read) -> None:
    document = read(
        "<html><p>Before.<h1>One\n <i>more</i></h1><p>First.<h2><img></h2><h3>Two</h3>Second."
    )
    assert document.text == "Before.\n\nOne more\n\nFirst.\n\nTwo\n\nSecond."
    assert titles(document) == ["One more", "Two"]
    assert document.chapter_at(0) is None
    assert document.chapter_at(document.text.index("First")) == "One more"
    assert document.chapter_at(len(document.text) - 1) == "Two"


def test_the_main_part_without_navigation(read: Read) -> None:
    page = f"<nav>Home</nav><main><h1>Book</h1>{'text ' * 20}</main><footer>Imprint</footer>"
    assert read(page).text == f"Book\n\n{'text ' * 20}".strip()
    small = f"<main>little</main><p>{'text ' * 20}"
    assert read(small).text.startswith("little")
    assert "text text" in read(small).text


def test_xhtml_with_empty_elements(read: Read) -> None:
    page = '<?xml version="1.0"?><html><head><title/></head><body><a id="x"/><p>In.<br/>On</p>'
    assert read(page, name="a.xhtml").text == "In.\nOn"


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="windows-1251">', "cp1251"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=ISO-8859-1">', "cp1252"),
        ('<meta charset="shift_jis">', "shift_jis"),
        ('<meta charset="utf-16">', "utf-8"),
        ('<meta charset="iso-8859-1">', "utf-8"),
        ("", "utf-16"),
        ("", "utf-8-sig"),
    ],
)
def test_encodings(read: Read, head: str, encoding: str) -> None:
    word = {"cp1251": "Привет", "shift_jis": "日本語"}.get(encoding, "Größe „ja“ – wohl überall")
    page = f"<html><head>{head}</head><p>{word}</html>".encode(encoding)
    assert read(page).text == word


def test_an_encoding_that_does_not_fit_is_not_believed(read: Read) -> None:
    page = '<html><meta charset="klingon"><p>caf\xe9 cr\xe8me'.encode("cp1252")
    document = read(page)
    assert document.text == "café crème"
    assert "Windows-1252" in document.notes[0]
    assert read(page, encoding="cp1250").text == "café crčme"


def test_page_with_another_name(read: Read) -> None:
    document = read("<!DOCTYPE html><p>x", name="a.txt")
    assert document.text == "x"
    assert document.notes == ("the name ends in .txt but the content is HTML; read as HTML",)


def test_the_name_decides_where_the_content_is_silent(read: Read) -> None:
    assert read("<p>a</p><p>b</p>", name="a.htm").text == "a\n\nb"
    assert read("<p>a</p>", name="a.txt").text == "<p>a</p>"
    plain = read("a\nb", name="a.html")
    assert plain.text == "a\nb"
    assert "plain text" in plain.notes[0]


def test_noncharacters_in_the_page_are_not_marks(read: Read) -> None:
    assert read("<html><p>a\ufdd1b\ufdd6c&#xFDD0;d&#xFDD8;7\ufdd9e").text.replace("\n", "")


TAGS = ["<p>", "<h1>", "</h1>", "<pre>", "</pre>", "<td>", "<br>", "<a id=x>", "<li>", "</p>"]
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=6)
PARTS = st.lists(st.one_of(st.sampled_from(TAGS), TEXT), max_size=20)


@given(parts=st.lists(PARTS, min_size=1, max_size=30))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_markup(read: Read, parts: list[list[str]]) -> None:
    page = "<html><p>word" + "".join(map("".join, parts))
    document = read(page.encode("utf-8", "ignore"))
    assert "word" in document.text
    shown = document.text + "".join(chapter.title for chapter in document.chapters)
    assert not re.search("[\ufdd0-\ufdef]", shown)
    end = 0
    for chapter in document.chapters:
        assert end <= chapter.start < chapter.end <= len(document.text)
        end = chapter.end


def test_nothing_to_read(read: Read) -> None:
    with pytest.raises(DocumentError, match="has no text"):
        read("<html><script>x</script></html>")


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    path.write_text("<html>" + "<p><b>a" * 500_000)
    with (
        open_source(path) as source,
        pytest.raises(DocumentError, match=r"needed more than 0\.25 GB of memory"),
    ):
        read_html(source, Options(), Limits(memory_bytes=1 << 28))


def test_nested_markup_is_refused(read: Read) -> None:
    with pytest.raises(DocumentError, match="nested too deep"):
        read("<html>" + "<div>" * 200_000 + "deep")
    assert read("<html>" + "<div>" * 2_000 + "deep").text == "deep"
    assert read("<html>" + "<div>flat</div>" * 20_000).text.count("flat") == 20_000


def test_markup_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "long.html"
    path.write_text("<html>" + "<p><b>a" * 200_000)
    with (
        open_source(path) as source,
        pytest.raises(DocumentError, match=r"took longer than 0\.01 s"),
    ):
        read_html(source, Options(), Limits(wall_seconds=0.01))
