"""Names what cannot be read, from its first bytes.

Only for messages and for keeping such files away from the text reader; a format that is read has
its own test in its own module.
"""

from __future__ import annotations

import os
import re

from .source import OpenFile

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
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office document"),
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
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html[\s>])", re.I | re.S
)
_DIRECTORY_BYTES = 1 << 16
_ZIP_MEMBERS = (
    (b"word/document.xml", "DOCX document"),
    (b"xl/workbook.xml", "XLSX spreadsheet"),
    (b"ppt/presentation.xml", "PPTX slides"),
)


def known_foreign(source: OpenFile) -> str | None:
    """The name of a known format that cannot be read, None for text and for the unknown."""
    head = source.head
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(source)
    if head[:4] == b"RIFF" and len(head) > 11:
        kinds = {b"WEBP": "WebP image", b"WAVE": "WAV audio", b"AVI ": "AVI video"}
        return kinds.get(head[8:12], "RIFF container")
    if head[4:8] == b"ftyp":
        return "MP4 video or HEIC image"
    if head[60:68] == b"BOOKMOBI":
        return "MOBI e-book"
    if head[257:262] == b"ustar":
        return "TAR archive"
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "HTML page"
    return next((name for magic, name in _SIGNATURES if head.startswith(magic)), None)


def _zip_kind(source: OpenFile) -> str:
    if source.head[30:58] == b"mimetypeapplication/epub+zip":
        return "EPUB"
    if source.head[30:].startswith(b"mimetypeapplication/vnd.oasis.opendocument"):
        return "OpenDocument file"
    source.file.seek(max(0, source.size - _DIRECTORY_BYTES), os.SEEK_SET)
    directory = source.file.read(_DIRECTORY_BYTES)
    return next((name for member, name in _ZIP_MEMBERS if member in directory), "ZIP archive")
