"""JSON in exactly one spelling, so that it can be hashed, compared and checked byte by byte.

Keys sorted by code point, no white space, ASCII with \\u escapes, whole numbers within 2**53, other
numbers finite and as Python's `repr` writes them (the shortest decimal that reads back the same).
`decode` takes nothing that `encode` would not have written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
MAX_DEPTH = 16
MAX_INT = 1 << 53


def encode(value: Json) -> bytes:
    """The canonical bytes of `value`; raises ValueError for what has none."""
    _check(value, MAX_DEPTH)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain
    ).encode("ascii")


def decode(data: bytes) -> Any:
    """The value that canonical bytes spell; raises ValueError for any other bytes."""
    try:
        value = json.loads(data, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if encode(value) != data:
        raise ValueError("not in canonical form")
    return value


def plain(value: Json) -> Any:
    """`value` as dictionaries, lists and scalars of its own: what `decode(encode(value))` gives."""
    return decode(encode(value))


def _check(value: object, depth: int) -> None:
    if depth == 0:
        raise ValueError("nested too deeply")
    match value:
        case None | bool() | str() | float():
            pass
        case int():
            if abs(value) > MAX_INT:
                raise ValueError(f"{value} is beyond 2**53")
        case Mapping():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"the key {key!r} is no string")
                _check(inner, depth - 1)
        case Sequence() if not isinstance(value, (bytes, bytearray, memoryview)):
            for inner in value:
                _check(inner, depth - 1)
        case _:
            raise ValueError(f"JSON has no {type(value).__name__}")


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")
