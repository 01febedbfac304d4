"""Plain text: bytes to characters, and the normal form all formats share.

Certain evidence comes before guesses: BOM, strict UTF-8, UTF-16 by its zero bytes, damaged UTF-8,
then a statistical guess, then Windows-1252. Whatever is not plain UTF-8 is told in a note.
"""

from __future__ import annotations

import codecs
import contextlib
import re
import unicodedata

from ..errors import DocumentError
from .content import Content, Options
from .source import OpenFile

_SAMPLE_BYTES = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_TITLES = {"cp1252": "Windows-1252", "utf-8": "UTF-8"}

_GUESSES = (
    *("cp1251", "koi8_r", "koi8_u", "iso8859_5", "mac_cyrillic"),
    *("cp932", "shift_jis", "euc_jp", "gb18030", "gb2312", "gbk", "big5", "cp949", "euc_kr"),
    *("cp1250", "iso8859_2", "cp1253", "iso8859_7", "cp1254", "cp1255", "cp1256", "tis_620"),
)
"""Encodings that a guess may choose; another one is likelier to be a wrong guess of cp1252."""

_SHARED_WITH_LATIN = {
    "cp1250": ("Polish", "Czech", "Slovak", "Hungarian", "Slovene", "Croatian", "Romanian"),
    "iso8859_2": ("Polish", "Czech", "Slovak", "Hungarian", "Slovene", "Croatian", "Romanian"),
    "cp1254": ("Turkish",),
}
"""Encodings with western letters too: chosen only when the language is one of theirs."""

_CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\r\f\x1a\x1b")) + b"\x7f"
_BEYOND_ASCII = bytes(range(128, 256))
_ASCII_LETTERS = re.compile(rb"[A-Za-z]")
_MIN_BEYOND_ASCII = 12
_UNWANTED = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_LINE_ENDS = re.compile("\r\n|[\r\f\x85]")


def read_text(source: OpenFile, options: Options) -> Content:
    """The text of a plain text file; raises DocumentError for binary content."""
    characters, notes = read_characters(source, options)
    return Content(text=normalise(characters), notes=notes)


def read_characters(
    source: OpenFile, options: Options, *, declared: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """The characters of a whole file, not yet normalised, and notes about how they were found.

    `declared` is the encoding that the content itself names: it is believed where the bytes are
    not UTF-8 and fit. Raises DocumentError for binary content.
    """
    if options.encoding is not None and not _is_text_encoding(options.encoding):
        raise DocumentError(
            f"{source.label}: {options.encoding!r} is not a text encoding; "
            "give one such as utf-8 or cp1252"
        )
    source.file.seek(0)
    data = source.file.read()
    try:
        if options.encoding is None and declared is not None and not _is_unicode(data):
            with contextlib.suppress(UnicodeError, LookupError):
                return _decode_as(data, declared)
        return decode(data, options.encoding)
    except UnicodeError as error:
        raise DocumentError(
            f"{source.label} is not a format that can be read (found: unknown binary)"
        ) from error


def normalise(text: str) -> str:
    """`\\n` as the only line end, no control characters, surrogates or BOM, NFC."""
    return unicodedata.normalize("NFC", _UNWANTED.sub("", _LINE_ENDS.sub("\n", text)))


def looks_like_text(head: bytes) -> bool:
    """Whether the first bytes of a file can be those of a text."""
    if any(head.startswith(bom) for bom, _ in _BOMS):
        return True
    try:
        if b"\x00" in head:
            _decode_with_zeros(head)
        else:
            _require_few_controls(head)
    except UnicodeError:
        return False
    return True


def decode(data: bytes, encoding: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The characters of `data`, not yet normalised, and notes about how they were found.

    Raises UnicodeError where `data` is not text.
    """
    if encoding is not None:
        return _decode_as(data, encoding)
    for bom, name in _BOMS:
        if data.startswith(bom):
            return _decode_as(data[len(bom) :], name)
    if b"\x00" in data:
        return _decode_with_zeros(data)
    _require_few_controls(data)
    try:
        return data.decode("utf-8"), ()
    except UnicodeDecodeError as error:
        return _decode_damaged(data, error.start) or _decode_guessed(data)


def _is_unicode(data: bytes) -> bool:
    if any(data.startswith(bom) for bom, _ in _BOMS):
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not data.isascii()


def _is_text_encoding(name: str) -> bool:
    try:
        b"a".decode(name, "replace")
    except (LookupError, ValueError):
        return False
    return True


def _decode_as(data: bytes, encoding: str) -> tuple[str, tuple[str, ...]]:
    """Decodes with an encoding that is known; what does not fit becomes U+FFFD and a note."""
    try:
        return data.decode(encoding), _read_as(encoding)
    except UnicodeDecodeError as error:
        first = error.start
    text = data.decode(encoding, "replace")
    count = _replacements(text, data)
    if count > len(text) // 20 + 1:
        raise UnicodeError(f"not {encoding}")
    return text, (*_read_as(encoding), _damage(count, first))


def _decode_with_zeros(data: bytes) -> tuple[str, tuple[str, ...]]:
    """UTF-16 without BOM where zeros fill one half of each pair; UTF-8 with a stray zero or two."""
    sample = data[: 16 * _SAMPLE_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    pairs = max(1, len(sample) // 2)
    for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros > 0.3 * pairs and others < 0.05 * pairs:
            return _decode_as(data, encoding)
    if data.count(0) * 1000 > len(data):
        raise UnicodeError("binary")
    _require_few_controls(data)
    return data.decode("utf-8"), ("zero bytes were left out",)


def _require_few_controls(data: bytes) -> None:
    """Text has next to no control bytes; compressed or machine data has one in ten."""
    sample = _sample(data)
    controls = len(sample) - len(sample.translate(None, _CONTROL_BYTES))
    if controls * 100 > len(sample):
        raise UnicodeError("binary")


def _decode_damaged(data: bytes, first: int) -> tuple[str, tuple[str, ...]] | None:
    """UTF-8 with a few bad sequences; None where single bytes explain `data` better."""
    text = data.decode("utf-8", "replace")
    bad = _replacements(text, data)
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    sound = beyond_ascii - bad
    rare = bad <= max(1, len(data) // 10_000)
    if sound < 10 * bad and not (rare and sound > bad):
        return None
    return text, (_damage(bad, first),)


def _decode_guessed(data: bytes) -> tuple[str, tuple[str, ...]]:
    encoding = _guess(_sample(data))
    if encoding is not None:
        text = data.decode(encoding, "replace")
        if text.count("\ufffd") * 1000 <= len(text):
            return text, (f"the encoding was guessed: {_title(encoding)}; --encoding overrides",)
    # The five bytes that cp1252 leaves open are controls in Latin-1: dropped with the surrogates.
    text = data.decode("cp1252", "surrogateescape")
    return text, ("not UTF-8; read as Windows-1252 (Latin-1); --encoding overrides",)


def _guess(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    ascii_letters = len(_ASCII_LETTERS.findall(sample))
    beyond_ascii = len(sample) - len(sample.translate(None, _BEYOND_ASCII))
    if beyond_ascii < _MIN_BEYOND_ASCII:
        return None
    best = from_bytes(sample, cp_isolation=["cp1252", *_GUESSES]).best()
    if best is None or best.encoding not in _GUESSES:
        return None
    languages = _SHARED_WITH_LATIN.get(best.encoding)
    if languages is not None:
        return best.encoding if best.language in languages else None
    # Another script fills the text; western accents are a few in a hundred letters.
    return best.encoding if beyond_ascii * 6 > ascii_letters + beyond_ascii else None


def _sample(data: bytes) -> bytes:
    """Start, middle and end of `data`, cut at line ends where there are any."""
    if len(data) <= 3 * _SAMPLE_BYTES:
        return data
    middle = len(data) // 2
    parts = (data[:_SAMPLE_BYTES], data[middle : middle + _SAMPLE_BYTES], data[-_SAMPLE_BYTES:])
    return b"\n".join(_whole_lines(part) for part in parts)


def _whole_lines(part: bytes) -> bytes:
    begin, end = part.find(b"\n"), part.rfind(b"\n")
    return part[begin + 1 : end] if 0 <= begin < end else part


def _replacements(text: str, data: bytes) -> int:
    return max(1, text.count("\ufffd") - data.count("\ufffd".encode()))


def _damage(count: int, first: int) -> str:
    places = "1 place" if count == 1 else f"{count} places"
    return f"bad bytes at {places} were replaced by \ufffd, the first at byte {first}"


def _read_as(encoding: str) -> tuple[str, ...]:
    return () if encoding == "utf-8" else (f"read as {_title(encoding)}",)


def _title(encoding: str) -> str:
    return _TITLES.get(encoding, encoding.upper().replace("_", "-"))
