"""Names the format of a file, from its bytes alone.

Some of the names are those of formats that are read, the others keep what cannot be read away from
the text reader and say in messages what it is.
"""

from __future__ import annotations

import codecs
import os
import re

from .source import OpenFile

_PDF_MAGIC = b"%PDF-"
_PDF_MAGIC_WITHIN = 1024
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f\x80-\xff]")
_PDF_OBJECT = re.compile(rb"(?<![^\r\n])\d+ \d+ obj\b")
_PDF_OBJECT_END = re.compile(rb"(?<![^\r\n])endobj\b")
_PDF_END = re.compile(rb"startxref\s+\d+\s+%%EOF\s*\Z")
_PDF_TAIL_BYTES = 1 << 16
_FEW_OBJECTS = 3
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_COMPRESSED = 4
"""Different control characters that a text does not have and compressed bytes soon do."""
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF87a", "GIF image"),
    (b"GIF89a", "GIF image"),
    (b"II*\x00", "TIFF image"),
    (b"MM\x00*", "TIFF image"),
    (b"AT&TFORM", "DjVu document"),
    (b"%!PS", "PostScript"),
    (b"{\\rtf", "RTF document"),
    (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"),
    (b"\xfd7zXZ\x00", "xz archive"),
    (b"\x28\xb5\x2f\xfd", "Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip archive"),
    (b"Rar!\x1a\x07", "RAR archive"),
    (b"\x7fELF", "ELF program"),
    (b"MZ\x90\x00", "Windows program"),
    (b"SQLite format 3\x00", "SQLite database"),
    (b"GGUF", "GGUF model"),
    (b"OggS", "Ogg audio"),
    (b"ID3", "MP3 audio"),
    (b"fLaC", "FLAC audio"),
)
_HTML = re.compile(
    rb"\s*+(?:<\?xml[^>]*>\s*+)?(?:<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html[\s>])",
    re.I | re.S,
)
_TAG = re.compile(rb"<(?:!doctype|[a-z][a-z0-9]*)[\s>/]", re.I)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_UTF16 = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DIRECTORY_BYTES = 1 << 20
_ZIP_MEMBERS = (
    (b"META-INF/container.xml", "EPUB"),
    (b"word/document.xml", "DOCX"),
    (b"xl/workbook.xml", "XLSX spreadsheet"),
    (b"ppt/presentation.xml", "PPTX slides"),
)


def recognise(source: OpenFile) -> str | None:
    """The name of the format that the content shows; None for text and for the unknown."""
    head = source.head
    if _is_pdf(source):
        return "PDF"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(source)
    if head.startswith(_OLE):
        return _ole_kind(source)
    if head[:4] == b"RIFF" and len(head) > 11:
        kinds = {b"WEBP": "WebP image", b"WAVE": "WAV audio", b"AVI ": "AVI video"}
        return kinds.get(head[8:12], "RIFF container")
    if head[4:8] == b"ftyp":
        return "MP4 video or HEIC image"
    if head[60:68] == b"BOOKMOBI":
        return "MOBI e-book"
    if head[257:262] == b"ustar":
        return "TAR archive"
    if _HTML.match(_as_utf8(head)):
        return "HTML"
    known = next((name for magic, name in _SIGNATURES if head.startswith(magic)), None)
    return "PDF" if known is None and _is_headless_pdf(source) else known


def has_tag(source: OpenFile) -> bool:
    """Whether there is something like a tag of HTML near the start."""
    return bool(_TAG.search(_as_utf8(source.head)))


def _is_pdf(source: OpenFile) -> bool:
    """The magic at the start, or behind a little junk."""
    head = source.head[:_PDF_MAGIC_WITHIN]
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(_PDF_MAGIC):
        return True
    # A text may speak of the magic; junk before a real PDF comes with binary bytes or the suffix.
    return _PDF_MAGIC in head and (source.suffix == ".pdf" or bool(_NOT_TEXT.search(head)))


def _is_headless_pdf(source: OpenFile) -> bool:
    """Objects or the end of a PDF whose beginning was lost. A text may show both, so binary bytes
    or the suffix have to say so, too."""
    head, named = source.head, source.suffix == ".pdf"
    if not named and b"endobj" not in head and not _CONTROL.search(head):
        return False
    seen = head + b"\n" + _end(source, _PDF_TAIL_BYTES)
    if not named and len(set(_CONTROL.findall(seen))) < _COMPRESSED:
        return False
    objects = min(len(_PDF_OBJECT.findall(seen)), len(_PDF_OBJECT_END.findall(seen)))
    return objects >= _FEW_OBJECTS or bool(_PDF_END.search(seen))


def _as_utf8(head: bytes) -> bytes:
    for bom, encoding in _UTF16:
        if head.startswith(bom):
            return head[len(bom) :].decode(encoding, "ignore").encode("utf-8", "ignore")
    return head.removeprefix(codecs.BOM_UTF8)


def _zip_kind(source: OpenFile) -> str:
    if source.head[30:58] == b"mimetypeapplication/epub+zip":
        return "EPUB"
    if source.head[30:].startswith(b"mimetypeapplication/vnd.oasis.opendocument"):
        return "OpenDocument file"
    # A file that was cut off has no directory, but its members' names stand before them too.
    names = _end(source) + source.head
    other = "ZIP archive" if b"PK\x05\x06" in names else "ZIP archive that was cut off"
    return next((name for member, name in _ZIP_MEMBERS if member in names), other)


def _ole_kind(source: OpenFile) -> str:
    locked = "EncryptedPackage".encode("utf-16-le")
    if locked in _end(source) or locked in source.head:
        return "Office document with a password; save it without one"
    return "old Office document; save it as DOCX"


def _end(source: OpenFile, count: int = _DIRECTORY_BYTES) -> bytes:
    source.file.seek(max(0, source.size - count), os.SEEK_SET)
    return source.file.read(count)
