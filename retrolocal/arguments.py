"""Reads a command line the way llama.cpp does, then hands it to argparse.

argparse reads an unknown `-fitness` as `-f itness` and refuses a value that begins with a dash;
llama.cpp does neither. `normalise` walks the words first: every option must be spelt in full, the
word after an option that takes a value is its value, whatever it looks like, and `-n32` is
`-n 32`. Knows no setting of the program.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from .errors import UsageError

KINDS = {"int": "whole number", "float": "number"}
"""What argparse calls values -> what people call them."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError instead of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{_reworded(message)}; see {self.prog} --help")


def _reworded(message: str) -> str:
    """What argparse says of a value, as the program says it of others."""
    found = re.fullmatch(
        r"argument (?P<names>\S+): invalid (?:choice: (?P<chosen>.+) \(choose from (?P<known>.+)\)"
        r"|(?P<kind>.+?) value: (?P<value>.+))",
        message,
        re.DOTALL,
    )
    if found is None:
        return message
    names = found["names"].split("/")
    option = next((name for name in names if name.startswith("--")), names[0])
    if found["known"]:
        return f"{option} is {found['chosen']}; give one of {found['known'].replace(chr(39), '')}"
    return f"{option} is {found['value']}; give a {KINDS.get(found['kind'], found['kind'])}"


def command_parser(prog: str, usage: str, description: str) -> Parser:
    """A parser whose help has the width and the manner of all commands."""
    return Parser(
        prog=prog,
        usage=usage,
        description=description,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=96),
        allow_abbrev=False,
    )


def parsed(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    prepare: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace | None:
    """The arguments, or None when help was asked for and has been shown; raises UsageError.

    `prepare` may give the parser other defaults; help does not wait for it.
    """
    if any(word in ("-h", "--help") for word in words):
        if sys.stdout is not None:
            # print_help would say nothing of a disk that is full.
            sys.stdout.write(parser.format_help())
        return None
    prepare(parser)
    return parser.parse_args(normalise(parser, words))


def normalise(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """The words with each option and its value joined as `--option=value`.

    Words that are no options stay where the command takes some. Raises UsageError for an option
    that the parser does not have, by its name.
    """
    known = parser._option_string_actions
    takes_words = bool(parser._get_positional_actions())
    result: list[str] = []
    left = iter(words)
    for word in left:
        name, joined, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            if takes_words:
                result.append(word)
                continue
            raise UsageError(f"{word!r} is not an option; see {parser.prog} --help")
        short = re.fullmatch(r"(-[a-z])(-?\d+(?:\.\d+)?)", word)
        if name not in known and short and short[1] in known:
            name, joined, value = short[1], "=", short[2]
        if name not in known:
            raise UsageError(_unknown(parser, name))
        action = known[name]
        option = max(action.option_strings, key=len)
        if action.nargs == 0:
            if joined:
                raise UsageError(f"{name} takes no value, and {value!r} was given")
            result.append(option)
            continue
        if not joined:
            following = next(left, None)
            if following is None:
                raise UsageError(f"{name} needs a value; see {parser.prog} --help")
            value = following
        result.append(f"{option}={value}")
    return result


def _unknown(parser: argparse.ArgumentParser, name: str) -> str:
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
    return f"{parser.prog} has no option {name}; {hint}"


def budget(text: str) -> float | None:
    """`auto` is None."""
    return None if text == "auto" else float(text)


budget.__name__ = "budget (auto or a fraction)"


UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def size(text: str) -> int:
    """`4G`, `512MiB`, `1.5 GB` or `1000000` as bytes; a unit is a power of 1,024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ValueError(text)
    return int(float(found[1]) * (1 << UNITS[found[2]]))


size.__name__ = "size (such as 4G or 512M)"


def page_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """`7,1-4,3-5` as ((1, 5), (7, 7)): in order, apart, the first page is 1."""
    ranges: list[tuple[int, int]] = []
    for part in sorted(_page_range(part) for part in text.split(",")):
        if ranges and part[0] <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(part[1], ranges[-1][1]))
        else:
            ranges.append(part)
    return tuple(ranges)


def _page_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    found = int(first), int(last if dash else first)
    if not 1 <= found[0] <= found[1]:
        raise ValueError(text)
    return found


page_ranges.__name__ = "list of pages (such as 1-400 or 1-9,12)"


def numbers(text: str) -> tuple[int, ...]:
    """`512,4096` as whole numbers."""
    return tuple(int(word) for word in text.split(","))


numbers.__name__ = "list (N or N,N,...)"


def fractions(text: str) -> tuple[float, ...]:
    """`1,2.5` as numbers."""
    return tuple(float(word) for word in text.split(","))


fractions.__name__ = "list (N or N,N,...)"


def names(text: str) -> tuple[str, ...]:
    """`dense,wave` as words."""
    return tuple(text.split(","))
