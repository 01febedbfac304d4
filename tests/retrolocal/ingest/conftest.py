"""Makers of small PDFs, byte by byte, so that no test needs a file or a PDF library."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_ID = b"0123456789abcdef"

MakePdf = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_pdf() -> MakePdf:
    """`make_pdf(pages)`; a page is its lines, None for a picture, bytes for a finished stream."""
    return _make_pdf


@pytest.fixture
def write_pdf(tmp_path: Path) -> Callable[..., Path]:
    """As `make_pdf`, written to a file."""

    def write(pages: Sequence[object], **options: object) -> Path:
        path = tmp_path / "made.pdf"
        path.write_bytes(_make_pdf(pages, **options))
        return path

    return write


def _make_pdf(
    pages: Sequence[object],
    *,
    user: str | None = None,
    permissions: int = -4,
    count: int | None = None,
    loop: bool = False,
    bookmarks: Sequence[tuple[str, int]] = (),
) -> bytes:
    objects: list[bytes] = [b""] * 4
    objects[2] = _font()
    objects[3] = _picture()
    kids = []
    for page in pages:
        stream = _stream(page)
        filters = b"/Filter/FlateDecode" if isinstance(page, bytes) else b""
        objects.append(_framed(stream, filters))
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents %d 0 R"
            b"/Resources<</Font<</F1 3 0 R>>/XObject<</I1 4 0 R>>>>>>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    if loop:
        kids = [b"2 0 R"]
    total = len(pages) if count is None else count
    outline = b""
    if bookmarks:
        outline = b"/Outlines %d 0 R" % (len(objects) + 1)
        objects += _outline(bookmarks, kids, len(objects) + 1)
    objects[0] = b"<</Type/Catalog/Pages 2 0 R%s>>" % outline
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (total, b" ".join(kids))
    trailer = b""
    if user is not None:
        key, entry = _encryption(user, permissions)
        objects = [_encrypted(key, n, body) for n, body in enumerate(objects, start=1)]
        objects.append(entry)
        trailer = b"/Encrypt %d 0 R/ID[<%s><%s>]" % ((len(objects),) + (_ID.hex().encode(),) * 2)
    return _file(objects, trailer)


def _outline(bookmarks: Sequence[tuple[str, int]], kids: list[bytes], root: int) -> list[bytes]:
    """An outline of one level; `root` is the number of its first object."""
    last = root + len(bookmarks)
    entries = [b"<</Type/Outlines/First %d 0 R/Last %d 0 R>>" % (root + 1, last)]
    for number, (title, page) in enumerate(bookmarks, start=root + 1):
        text = b"\xfe\xff" + title.encode("utf-16-be")
        following = b"/Next %d 0 R" % (number + 1) if number < last else b""
        entries.append(
            b"<</Title<%s>/Parent %d 0 R/Dest[%s/Fit]%s>>"
            % (text.hex().encode(), root, kids[page], following)
        )
    return entries


def _file(objects: Sequence[bytes], trailer: bytes) -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<</Size %d/Root 1 0 R%s>>\n" % (len(objects) + 1, trailer)
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def _font() -> bytes:
    return b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>"


def _picture() -> bytes:
    head = b"/Type/XObject/Subtype/Image/Width 8/Height 8/ColorSpace/DeviceGray/BitsPerComponent 8"
    return _framed(bytes(range(64)), head)


def _stream(page: object) -> bytes:
    if page is None:
        return b"q 500 0 0 700 50 50 cm /I1 Do Q"
    if isinstance(page, bytes):
        return page
    assert isinstance(page, str)
    lines = [_escaped(line) + b" Tj T*" for line in page.split("\n")]
    return b"BT /F1 11 Tf 14 TL 50 780 Td\n" + b"\n".join(lines) + b"\nET"


def _escaped(line: str) -> bytes:
    raw = line.encode("cp1252")
    return b"(" + raw.replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)") + b")"


def _framed(stream: bytes, entries: bytes) -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(stream), stream)


def _encryption(user: str, permissions: int) -> tuple[bytes, bytes]:
    """Key and dictionary of the standard handler, revision 2 (RC4, 40 bits)."""
    padded = (user.encode() + _PAD)[:32]
    owner = _rc4(hashlib.md5((b"owner" + _PAD)[:32]).digest()[:5], padded)
    seed = padded + owner + struct.pack("<i", permissions) + _ID
    key = hashlib.md5(seed).digest()[:5]
    entry = b"<</Filter/Standard/V 1/R 2/O<%s>/U<%s>/P %d>>" % (
        owner.hex().encode(),
        _rc4(key, _PAD).hex().encode(),
        permissions,
    )
    return key, entry


def _encrypted(key: bytes, number: int, body: bytes) -> bytes:
    head, mark, rest = body.partition(b"stream\n")
    if not mark:
        return body
    stream = rest.removesuffix(b"\nendstream")
    own = hashlib.md5(key + struct.pack("<I", number)[:3] + b"\0\0").digest()[:10]
    return head + mark + _rc4(own, stream) + b"\nendstream"


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


@pytest.fixture(scope="session")
def flate_bomb() -> bytes:
    """A compressed stream of half a gigabyte of spaces."""
    packer = zlib.compressobj(1)
    block = b" " * (1 << 20)
    return b"".join([packer.compress(block) for _ in range(512)]) + packer.flush()
