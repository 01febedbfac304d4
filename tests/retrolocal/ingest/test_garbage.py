from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from retrolocal.ingest import read_document
from retrolocal.ingest.garbage import garbage_reason

ENGLISH = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
    "age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the "
    "season of Light, it was the season of Darkness. "
)
SWAHILI = (
    "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri, "
    "hivyo yapasa watendeane kindugu. Kila mtu anastahili kuwa na haki zote na uhuru wote ambao "
    "katika taarifa hii bila ubaguzi wa rangi, taifa, wanaume kwa wanawake, dini, siasa. "
)
PARTS = " ".join(f"Bolt M{n} galvanised hexagon nut washer spring steel" for n in range(30))
CODE = "int main void return printf char struct static const sizeof memcpy strlen while break " * 9


def caesar(text: str, shift: int) -> str:
    letters = string.ascii_lowercase
    table = str.maketrans(letters, letters[shift:] + letters[:shift])
    return text.lower().translate(table)


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        SWAHILI,
        PARTS,
        CODE,
        "Все счастливые семьи похожи друг на друга. " * 20,
        "吾輩は猫である。名前はまだ無い。" * 20,
        "α² + β² = γ², ∑ xᵢ ≤ ∞ " * 20,
        "42 17 3.14 " * 200,
        "XML HTML PDF",
        "com\ufffepares " * 60 + ENGLISH,
        "",
    ],
)
def test_text_passes(text: str) -> None:
    assert garbage_reason([text]) is None


@pytest.mark.parametrize("shift", [1, 3, 13, 29 % 26])
def test_shifted_letters(shift: int) -> None:
    assert garbage_reason([caesar(ENGLISH * 3, shift)]) == "its letters make no words"


@pytest.mark.parametrize("seed", range(5))
def test_random_letters(seed: int) -> None:
    noise = random.Random(seed)
    words = [
        "".join(noise.choices(string.ascii_letters, k=noise.randint(2, 9))) for _ in range(200)
    ]
    assert garbage_reason([" ".join(words)]) == "its letters make no words"


@pytest.mark.parametrize("character", ["\ue042", "\x01", "\ufffd", "\x1f"])
def test_characters_of_no_meaning(character: str) -> None:
    assert garbage_reason([ENGLISH, character * 28]) == "13% of its characters have no meaning"
    assert garbage_reason([ENGLISH, character * 4]) is None


def test_real_books_pass(material: Path) -> None:
    for path in sorted((material / "documents").glob("*.pdf")):
        assert len(read_document(path).text) > 10_000
    for path in sorted((material / "texts").glob("*.txt")):
        assert garbage_reason([read_document(path).text]) is None
