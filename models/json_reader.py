"""A typed reader of JSON files that come from elsewhere.

Every getter names the file and the key when something is missing, of another type, or out of
bounds. A key whose value is null counts as absent. Knows nothing of models or weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from ..errors import ModelError
from ..files import open_regular, stand_in

MAX_BYTES = 64 << 20
"""Larger files than this are not metadata."""


def read_json(path: Path, error: type[ModelError]) -> JsonReader:
    """The JSON object in a file; raises `error` with one line when there is none."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})") from problem
    if len(content) > MAX_BYTES:
        raise error(f"{path}: larger than {MAX_BYTES >> 20} MiB, so not a JSON file of a model")
    return parse_json(content, path, error)


def parse_json(content: bytes, path: Path, error: type[ModelError]) -> JsonReader:
    """The JSON object that these bytes of `path` spell."""
    other = stand_in(content)
    if other is not None:
        raise error(f"{path}: {other}")
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text; download it again") from problem
    except (ValueError, RecursionError) as problem:
        reason = str(problem).splitlines()[0] if isinstance(problem, ValueError) else "too deep"
        raise error(f"{path}: not valid JSON ({reason}); download it again") from problem
    if not isinstance(values, dict):
        raise error(f"{path}: holds {kind(values)}; a JSON object is needed")
    return JsonReader(values, str(path), error)


class JsonReader:
    """One JSON object, read key by key."""

    def __init__(self, values: dict[str, object], where: str, error: type[ModelError]) -> None:
        self.values = values
        self.where = where
        """What a message begins with: the file, and the section in it."""
        self.error = error

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, *, minimum: int = 1, maximum: int) -> int:
        value = self._present(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.mistyped(key, f"a whole number from {minimum} to {maximum}")
        if not minimum <= value <= maximum:
            raise self.mistyped(key, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, *, minimum: float = 0.0, above: bool = False) -> float:
        """A finite number of at least `minimum`, or larger than it with `above`."""
        value = self._present(key)
        needed = f"a finite number {'above' if above else 'of at least'} {minimum:g}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.mistyped(key, needed)
        try:
            result = float(value)
        except OverflowError:
            raise self.mistyped(key, needed) from None
        if not math.isfinite(result) or result < minimum or (above and result == minimum):
            raise self.mistyped(key, needed)
        return result

    def boolean(self, key: str, *, default: bool) -> bool:
        value = default if not self.has(key) else self.values[key]
        if not isinstance(value, bool):
            raise self.mistyped(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._present(key)
        if not isinstance(value, str):
            raise self.mistyped(key, "a string")
        return value

    def items(self, key: str) -> list[object]:
        value = self._present(key)
        if not isinstance(value, list):
            raise self.mistyped(key, "a list")
        return value

    def section(self, key: str) -> JsonReader:
        value = self._present(key)
        if not isinstance(value, dict):
            raise self.mistyped(key, "an object")
        return JsonReader(value, f"{self.where}: {key}", self.error)

    def mistyped(self, key: str, needed: str) -> ModelError:
        return self.refuse(f"{key!r} is {shown(self.values.get(key))}; {needed} is needed")

    def refuse(self, reason: str) -> ModelError:
        """The error to raise: where, and why."""
        return self.error(f"{self.where}: {reason}")

    def _present(self, key: str) -> object:
        if not self.has(key):
            raise self.refuse(f"the key {key!r} is {'null' if key in self.values else 'missing'}")
        return self.values[key]


def shown(value: object) -> str:
    """A value from a file as it may stand in a one-line message."""
    if isinstance(value, dict | list):
        return kind(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many there are in all when that is more."""
    names = list(names)
    text = ", ".join(shown(name).strip("'\"") for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
