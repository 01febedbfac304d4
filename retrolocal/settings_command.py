"""`retrolocal config`: every setting, its value, and who gave it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from .arguments import Parser, command_parser, parsed
from .measurement import table
from .paths import cache_dir, library_folder, state_dir
from .settings import SETTINGS, Given, Setting, config_file, examined_settings, from_text


def config(words: Sequence[str]) -> int:
    """Runs `retrolocal config WORDS...` and returns the exit code; raises RetrolocalError.

    What makes no sense in the file or a variable is told behind the values that do.
    """
    arguments = parsed(config_parser(), words)
    if arguments is None:
        return 0
    given, problems = examined_settings()
    for setting in SETTINGS:
        text = getattr(arguments, setting.destination, None)
        if text is not None:
            flag = f"--{setting.name}"
            value = True if setting.kind is bool else from_text(setting, text, flag)
            given[setting.name] = Given(value, "flag", flag)
    values = {
        setting.name: given.get(setting.name, Given(setting.default, "default", ""))
        for setting in SETTINGS
    }
    if arguments.json:
        facts = {**_facts(values), "problems": [str(problem) for problem in problems]}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        for line in _lines(values):
            print(line)
    for problem in problems:
        print(f"retrolocal: {problem}", file=sys.stderr)
    return problems[0].exit_code if problems else 0


def config_parser() -> Parser:
    """The options of `retrolocal config`: those that it shows."""
    parser = command_parser(
        "retrolocal config",
        "retrolocal config [--json] [options of chat]",
        "Shows every setting that the configuration file, a variable or a flag can give, and which "
        "of them gave it. A key of the file is the name of the option; flags win over variables, "
        "and these over the file.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    for setting in (one for one in SETTINGS if one.is_option):
        names = [f"--{setting.name}", *(["-m"] if setting.name == "model" else [])]
        help_text = f"as given to chat (default: {_default(setting)})"
        if setting.kind is bool:
            parser.add_argument(*names, action="store_const", const=True, help=help_text)
        else:
            parser.add_argument(*names, metavar="VALUE", help=help_text)
    return parser


def _facts(values: dict[str, Given]) -> dict[str, Any]:
    file = config_file()
    return {
        "file": str(file),
        "file_exists": os.path.exists(file),
        "settings": {
            name: {"value": one.value, "from": one.origin, "where": one.where}
            for name, one in values.items()
        },
        "folders": _folders(values),
    }


def _lines(values: dict[str, Given]) -> list[str]:
    file = config_file()
    rows = [
        (setting.name, _shown(setting, values[setting.name]), _origin(values[setting.name]))
        for setting in SETTINGS
    ]
    return [
        f"file: {file}{'' if os.path.exists(file) else ' (not there)'}",
        *(f"{name}: {folder}" for name, folder in _folders(values).items()),
        "",
        *table(("setting", "value", "from"), rows, left=3),
    ]


def _folders(values: dict[str, Given]) -> dict[str, str]:
    library = {name: one for name, one in values.items() if one.origin != "default"}
    folders = {"library": library_folder(library), "cache": cache_dir(), "state": state_dir()}
    return {name: str(folder) for name, folder in folders.items()}


def _shown(setting: Setting, given: Given) -> str:
    return _default(setting) if given.origin == "default" else _text(given.value)


def _default(setting: Setting) -> str:
    parts = [] if setting.default is None else [_text(setting.default)]
    return ": ".join([*parts, *([setting.note] if setting.note else [])])


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _origin(given: Given) -> str:
    return given.where or given.origin
