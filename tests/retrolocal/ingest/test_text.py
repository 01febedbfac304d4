from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrolocal.ingest import read_document
from retrolocal.ingest.text import decode, normalise

TEXT = st.text(st.characters(blacklist_categories=("Cc", "Cs"), whitelist_characters="\n\t"))

RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья по-своему. " * 20
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 20
POLISH = "Litwo! Ojczyzno moja! ty jesteś jak zdrowie; ile cię trzeba cenić, ten tylko się dowie. "
FRENCH = "Longtemps, je me suis couché de bonne heure. Où était-ce ? À côté, déjà, près du Noël. "
GERMAN = "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch; große Stille. "


@given(TEXT)
def test_utf8_round_trip(text: str) -> None:
    decoded, notes = decode(text.encode())
    assert normalise(decoded) == normalise(text)
    assert notes == ()


@given(TEXT.filter(lambda text: text != ""))
def test_utf16_round_trip(text: str) -> None:
    decoded, _ = decode(text.encode("utf-16"))
    assert normalise(decoded) == normalise(text)
    decoded, _ = decode(text.encode("utf-16-be"), "utf-16-be")
    assert normalise(decoded) == normalise(text)


@given(st.text(st.characters()))
def test_normal_form(text: str) -> None:
    normal = normalise(text)
    assert normalise(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufeff\ufffe]", normal)
    normal.encode()


@given(st.binary(max_size=400))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        text, _ = decode(data)
    except UnicodeError:
        return
    normalise(text).encode()


def test_normalise() -> None:
    assert normalise("\ufeffa\r\nb\rc\fd\x00\x1b\x7f\te\u0301\ud800") == "a\nb\nc\nd\té"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_bom(encoding: str) -> None:
    decoded, _ = decode("Grüße\n猫".encode(encoding))
    assert normalise(decoded) == "Grüße\n猫"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_bom(encoding: str) -> None:
    text, notes = decode(GERMAN.encode(encoding))
    assert text == GERMAN
    assert notes == (f"read as {encoding.upper()}",)


def test_stray_zero() -> None:
    text, notes = decode(b"word " * 400 + b"\0")
    assert normalise(text) == "word " * 400
    assert notes == ("zero bytes were left out",)


def test_bad_bytes_in_utf8_are_replaced_and_told() -> None:
    text, notes = decode(b"Gr\xc3\xbc\xc3\x9fe" + b"\xff" + RUSSIAN.encode())
    assert text == "Grüße\ufffd" + RUSSIAN
    assert notes == ("bad bytes at 1 place were replaced by \ufffd, the first at byte 7",)


def test_utf8_cut_inside_a_character() -> None:
    text, notes = decode(
        "Schöne Grüße aus Köln, für größere Bären übrig: ö"[:-1].encode() + b"\xc3"
    )
    assert text.endswith("\ufffd")
    assert len(notes) == 1


@pytest.mark.parametrize("text", [FRENCH, GERMAN, "Un solo acento: caf\u00e9 " + "y nada más " * 9])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_western(text: str, encoding: str) -> None:
    decoded, notes = decode((text * 10).encode(encoding))
    assert decoded == text * 10
    assert notes == ("not UTF-8; read as Windows-1252 (Latin-1); --encoding overrides",)


def test_typographic_quotes_are_cp1252() -> None:
    assert decode(b"\x93so\x94 \x96 \x80 5")[0] == "“so” – € 5"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (POLISH * 20, "cp1250"),
    ],
)
def test_guess(text: str, encoding: str) -> None:
    decoded, notes = decode(text.encode(encoding))
    assert decoded == text
    assert "guessed" in notes[0]


def test_encoding_given() -> None:
    assert decode("Größe".encode("cp850"), "cp850") == ("Größe", ("read as CP850",))


@pytest.mark.parametrize("data", [bytes(range(256)), b"\0" * 50, b"\x01\x02\x03\xff\xfe\xfd" * 20])
def test_binary(data: bytes) -> None:
    with pytest.raises(UnicodeError):
        decode(data)


def test_latin1_book(material: Path) -> None:
    path = next(material.glob("texts/don-quijote-es*.latin1.txt"))
    document = read_document(path)
    assert document.text == normalise(path.read_bytes().decode("latin-1"))
    assert "En un lugar de la Mancha" in document.text
    assert "ningún" in document.text
    assert "señor" in document.text
