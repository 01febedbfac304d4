"""Tells text from what a broken text layer gives: characters of no meaning, or shuffled letters.

Judges strings by two statistics that hold in every language it can judge; what it cannot judge
(few words, other scripts) passes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_MAX_SENSELESS = 0.05
_MIN_CHARACTERS = 20
_SAMPLE_CHARACTERS = 1 << 20

# PDFium's marks of a broken word (U+0002, U+FFFE) and pieces of tall brackets have a meaning.
_SENSELESS = re.compile("[\x00\x01\x03-\x08\x0b\x0e-\x1f\ue000-\uf8e4\uf8ff\ufffd]")
_LATIN_WORD = re.compile(r"(?<![^\W\d_])[A-Za-zÀ-ɏḀ-ỿ]{2,30}(?![^\W\d_])")
_VOWELS = frozenset("aeiouyæœøı")
_MIN_WORDS = 40
_FEWEST_VOWELS = 0.28
_MOST_VOWELS = 0.62
_MIN_COMMON = 0.02

_FREQUENT = """
the and of to in is that for it was on with as at by this are from or an be not have
der die das und ist nicht mit den von ein eine zu im auf für sich auch dem
le la les de des et un une est que qui dans pour pas sur au du en il
el los las que del por con una para se lo como su más
il di che non per del della sono con si da nel
do da os as não um uma com em para se mais
het een van dat op te niet zijn met voor er aan
och att det som en på är av för med inte den
og det er på til af ikke har med den
ja on ei se että oli hän mutta kun niin ovat
nie się na że jest do to jak ale przez za od
je na se že by to ale jako za si byl
és az egy nem hogy volt csak is meg ez
și nu cu la este din care mai pe sunt
ve bir bu için ile da de olan çok gibi daha
và của là có không trong được một cho các những với
yang dan di itu dengan untuk tidak ini dari dalam pada
et in est non ad cum ut quod qui sed per
"""
"""Short words of languages in Latin script, a language a line."""
_COMMON_WORDS = frozenset(_FREQUENT.split())


def garbage_reason(texts: Iterable[str]) -> str | None:
    """Why the texts of a document's pages cannot be what is printed there; None where they can."""
    text = _sample(texts)
    characters = len(text) - sum(map(text.count, " \t\r\n"))
    if characters < _MIN_CHARACTERS:
        return None
    senseless = len(_SENSELESS.findall(text))
    if senseless > _MAX_SENSELESS * characters:
        return f"{senseless / characters:.0%} of its characters have no meaning"
    words = [word.lower() for word in _LATIN_WORD.findall(text)]
    if len(words) >= _MIN_WORDS and not _is_language(words):
        return "its letters make no words"
    return None


def _sample(texts: Iterable[str]) -> str:
    pieces: list[str] = []
    length = 0
    for text in texts:
        pieces.append(text)
        length += len(text)
        if length >= _SAMPLE_CHARACTERS:
            break
    return "".join(pieces)


def _is_language(words: Sequence[str]) -> bool:
    """Shuffled letters hit frequent words by chance only, and have too few vowels or too many;
    lists of names, code and rare languages fail one of the two tests but not both."""
    if sum(word in _COMMON_WORDS for word in words) > _MIN_COMMON * len(words):
        return True
    # Without accents: marks that combine with a letter are no letters.
    letters = [c for c in unicodedata.normalize("NFD", "".join(words)) if c.isalpha()]
    vowels = sum(letter in _VOWELS for letter in letters)
    return _FEWEST_VOWELS <= vowels / len(letters) <= _MOST_VOWELS
