"""The text of an EPUB in pieces, cut where its table of contents points to.

The spine gives the order. What the table of contents does not mention is cut at its first heading,
or goes on with the chapter before it. Links are names inside the archive, never paths on disk.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from posixpath import dirname, join, normpath
from typing import Any, BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from selectolax.lexbor import LexborHTMLParser

from .archive import Archive, BadArchiveError
from .markup import as_html, cut, read_markup

_PAGES = ("application/xhtml+xml", "text/html", "application/xml", "text/x-oeb1-document")
_FONT_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding=[\"']([\w.-]{1,40})[\"']")
_RIGHTS = ("META-INF/rights.xml", "META-INF/sinf.xml")

Element = ElementTree.Element
Link = tuple[str, str]
"""Name of a member and the id inside it, empty for its beginning."""


def work(file: BinaryIO, request: dict[str, Any]) -> Iterator[object]:
    """`request` has "limits". Yields {"error": str} alone, or {"error": None, "missing": [str]}
    and then [title or None, text]."""
    try:
        archive = Archive(file, request["limits"])
        book = _open_book(archive)
        pieces = [piece for name in book.spine for piece in _pieces(archive, name, book)]
    except BadArchiveError as error:
        yield {"error": str(error)}
    except (ElementTree.ParseError, KeyError):
        yield {"error": "damaged"}
    else:
        yield {"error": None, "missing": book.missing}
        yield from pieces


@dataclass(frozen=True, slots=True)
class _Book:
    spine: list[str]
    """Names of the members to read, in order."""
    missing: list[str]
    """What the book names and the archive lacks."""
    titles: dict[str, dict[str, str]] = field(default_factory=dict)
    """Member -> id -> title of the table of contents."""


def _open_book(archive: Archive) -> _Book:
    container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
    roots = [e.get("full-path", "") for e in container.iter() if _tag(e) == "rootfile"]
    package_name = _inside("", roots[0])[0] if roots else ""
    package = ElementTree.fromstring(archive.read(package_name))
    items = {e.get("id", ""): e for e in package.iter() if _tag(e) == "item"}
    spine = next((e for e in package if _tag(e) == "spine"), None)
    if spine is None:
        raise BadArchiveError("damaged")
    names: list[str] = []
    missing: list[str] = []
    for reference in spine:
        item = items.get(reference.get("idref", ""))
        if item is None or item.get("media-type", _PAGES[0]) not in _PAGES:
            continue
        name = _inside(package_name, item.get("href", ""))[0]
        (names if name in archive.names else missing).append(name)
    _refuse_locked(archive, set(names))
    book = _Book(list(dict.fromkeys(names)), missing)
    try:
        book.titles.update(_contents(archive, package_name, items, spine.get("toc", "")))
    except ElementTree.ParseError:
        missing.append("a table of contents that makes sense")
    return book


def _refuse_locked(archive: Archive, wanted: set[str]) -> None:
    """Digital rights management; obfuscated fonts are none."""
    if "META-INF/encryption.xml" not in archive.names:
        return
    for entry in ElementTree.fromstring(archive.read("META-INF/encryption.xml")).iter():
        if _tag(entry) != "EncryptedData":
            continue
        parts = list(entry.iter())
        method = next((e.get("Algorithm", "") for e in parts if _tag(e) == "EncryptionMethod"), "")
        links = [e.get("URI", "") for e in parts if _tag(e) == "CipherReference"]
        locked = any(_inside("", link)[0] in wanted for link in links)
        if locked or (method not in _FONT_METHODS and any(n in archive.names for n in _RIGHTS)):
            raise BadArchiveError("locked")


def _contents(
    archive: Archive, package: str, items: dict[str, Element], ncx: str
) -> dict[str, dict[str, str]]:
    """The table of contents of EPUB 3, else that of EPUB 2, else nothing."""
    for item in items.values():
        if "nav" in item.get("properties", "").split():
            links = _navigation(archive, _inside(package, item.get("href", ""))[0])
            break
    else:
        kind = "application/x-dtbncx+xml"
        listed = [e for e in (items.get(ncx), *items.values()) if e is not None]
        found = [e.get("href", "") for e in listed if e.get("media-type") == kind]
        links = _ncx(archive, _inside(package, found[0])[0]) if found else []
    titles: dict[str, dict[str, str]] = {}
    for (member, anchor), title in links:
        if title:
            titles.setdefault(member, {}).setdefault(anchor, title)
    return titles


def _navigation(archive: Archive, name: str) -> list[tuple[Link, str]]:
    if name not in archive.names:
        return []
    page = LexborHTMLParser(as_html(_decoded(archive.read(name))))
    lists = [n for n in page.css("nav") if "toc" in (n.attributes.get("epub:type") or "").split()]
    return [
        (_inside(name, link.attributes.get("href") or ""), " ".join(link.text().split()))
        for nav in lists[:1] or page.css("nav")[:1]
        for link in nav.css("a[href]")
    ]


def _ncx(archive: Archive, name: str) -> list[tuple[Link, str]]:
    if name not in archive.names:
        return []
    found = []
    for point in ElementTree.fromstring(archive.read(name)).iter():
        if _tag(point) == "navPoint":
            parts = {_tag(child): child for child in point}
            if "content" in parts and "navLabel" in parts:
                title = " ".join("".join(parts["navLabel"].itertext()).split())
                found.append((_inside(name, parts["content"].get("src", "")), title))
    return found


def _pieces(archive: Archive, name: str, book: _Book) -> Iterator[list[str | None]]:
    titles = dict(book.titles.get(name, {}))
    whole = titles.pop("", None)
    anchors = list(titles)
    page = read_markup(_decoded(archive.read(name)), anchors, is_xhtml=True)
    places = [(offset, titles[anchors[number]]) for offset, number in page.anchors]
    if whole is not None:
        places.insert(0, (0, whole))
    elif not places:
        places = list(page.headings[:1])
    yield from cut(page.text, places)


def _inside(base: str, link: str) -> Link:
    """The member that a link of the member `base` names, and the id in it."""
    path, _, anchor = link.partition("#")
    target = normpath(join(dirname(base), unquote(path))) if path else base
    return target.lstrip("/"), unquote(anchor)


def _decoded(data: bytes) -> str:
    for bom, name in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")):
        if data.startswith(bom):
            return data[len(bom) :].decode(name, "replace")
    if data.startswith(codecs.BOM_UTF16_BE):
        return data[2:].decode("utf-16-be", "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        declared = _DECLARED.match(data[:200].lstrip())
        try:
            return data.decode(declared[1].decode() if declared else "cp1252", "replace")
        except LookupError:
            return data.decode("utf-8", "replace")


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
