"""What `bench` and `eval` share: choose a measurement, check its options, run it, show its result.

A measurement is a module with `run(options, progress) -> Result` that is imported only when it
runs. Its result goes to stdout, as text or as one JSON object; what it compares is said before it
starts, and progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast

from .arguments import parsed
from .errors import UsageError
from .shared_options import threads_option

Progress = Callable[[str], None]
"""Takes one line about the work that goes on."""
Result = dict[str, Any]
"""What JSON can hold: facts, and a list of rows under `results` where there are several."""
MAX_SEED = (1 << 63) - 1


class Options(Protocol):
    """The checked options of one measurement."""

    @property
    def compares(self) -> str:
        """One line: what is measured against what."""
        ...

    @property
    def notes(self) -> list[str]:
        """Lines that say what the figures do not mean."""
        ...


class Runner(Protocol):
    def __call__(self, options: Options, progress: Progress) -> Result: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    summary: str
    """For the list of a group's commands."""
    parser: Callable[[], argparse.ArgumentParser]
    options: Callable[[argparse.Namespace], Options]
    """Raises UsageError."""
    module: str
    """Absolute name of the module with `run`."""
    lines: Callable[[Result], list[str]]
    """The result as text."""


def common_options(group: argparse._ArgumentGroup) -> None:
    threads_option(group)
    group.add_argument(
        "-s",
        "--seed",
        type=int,
        default=0,
        metavar="I",
        help="seed of everything that is drawn (default: %(default)s)",
    )
    output_options(group)


def chosen_model(arguments: argparse.Namespace) -> str:
    """A measurement never depends on which models happen to be here."""
    return "builtin" if arguments.model is None else arguments.model


def output_options(group: argparse._ArgumentGroup) -> None:
    """Those of every measurement."""
    group.add_argument(
        "--json", action="store_true", help="print one JSON object, and nothing else, on stdout"
    )
    group.add_argument(
        "--out", metavar="DIR", help="also write that object to a file in this folder"
    )


def require_seed(seed: int) -> None:
    """Raises UsageError."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed is {seed}; give 0 to {MAX_SEED}")


def run_one_of(
    group: str, measurements: Mapping[str, Measurement], closing: str, words: Sequence[str]
) -> int:
    """Runs `retrolocal GROUP WORDS...` and returns the exit code; raises RetrolocalError."""
    if words and words[0] in ("-h", "--help", "help"):
        print(_usage(group, measurements, closing))
        return 0
    chosen = measurements.get(words[0]) if words else None
    if chosen is None:
        problem = f"has no command {words[0]!r}" if words else "needs a command"
        known = ", ".join(measurements)
        raise UsageError(
            f"retrolocal {group} {problem}; give {known} (see retrolocal {group} --help)"
        )
    arguments = parsed(chosen.parser(), words[1:])
    if arguments is None:
        return 0
    if sys.stdout is None:
        raise UsageError("stdout is closed; there is nowhere to put the result")
    file = None
    if arguments.out is not None:
        file = Path(arguments.out) / f"{group}-{words[0]}.json"
        _require_folder(file.parent)
    result = _run(chosen, chosen.options(arguments), as_json=arguments.json)
    if file is not None:
        write_result(file, result)
        print(f"written: {file}", file=sys.stderr, flush=True)
    return 0


def facts_and_table(result: Result) -> list[str]:
    """Any result as text: its facts one per line, then `results` as a table."""
    rows = result.get("results", [])
    shown = {k: v for k, v in result.items() if k not in ("results", "compares", "notes")}
    facts = [f"{name}: {_shown(value)}" for name, value in _flat(shown).items()]
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    cells = [[_shown(row.get(name)) for name in names] for row in flat]
    return [*facts, *(table(names, cells) if rows else [])]


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """A Markdown table in columns; all but the first `left` are right-aligned."""
    columns = [[name, *(row[i] for row in rows)] for i, name in enumerate(names)]
    widths = [max(2, *map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        places = enumerate(zip(cells, widths, strict=True))
        padded = (c.ljust(width) if i < left else c.rjust(width) for i, (c, width) in places)
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [line(names), line(rule), *(line(row) for row in rows)]


def _require_folder(folder: Path) -> None:
    """Before anything is measured; raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out is {folder} and that folder cannot be made ({error.strerror}); give another"
        ) from None


def write_result(file: Path, result: Result) -> None:
    """Whole or not at all; raises UsageError where it cannot be written."""
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as new:
            new.write(text)
        Path(new.name).replace(file)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written ({error.strerror}); give another --out"
        ) from None


def _run(chosen: Measurement, options: Options, *, as_json: bool) -> Result:
    def to_stderr(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def to_stdout(line: str) -> None:
        print(line, flush=True)

    say = to_stderr if as_json else to_stdout
    for line in (f"compares: {options.compares}", *(f"note: {note}" for note in options.notes)):
        say(line)
    run = cast(Runner, import_module(chosen.module).run)
    about = {"compares": options.compares, "notes": options.notes}
    result = {**about, **run(options, to_stderr)}
    if as_json:
        print(json.dumps(result, ensure_ascii=False), flush=True)
        return result
    for line in chosen.lines(result):
        print(line)
    return result


def _usage(group: str, measurements: Mapping[str, Measurement], closing: str) -> str:
    width = max(map(len, measurements))
    commands = [f"  {name:{width}}  {one.summary}" for name, one in measurements.items()]
    return "\n".join(
        (
            f"usage: retrolocal {group} COMMAND [options]",
            "",
            "commands:",
            *commands,
            "",
            "options:",
            "  -h, --help  show this help, or that of a command",
            "",
            closing,
        )
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_shown(inner) or 'none'}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        if any(isinstance(item, Mapping) for item in value):
            runs = ((_shown(item), len(list(same))) for item, same in groupby(value))
            return ", ".join(f"{count} x ({text})" for text, count in runs)
        return ", ".join(map(_shown, value))
    return f"{value:,}" if type(value) is int else str(value)
