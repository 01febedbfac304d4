"""Settings that outlive a command: the configuration file, then variables, then flags.

A key of the file is the long name of an option without its dashes; what an option refuses, the
file is refused for, with its name. What comes later wins. A secret has no key.

    model = "Qwen/Qwen2.5-7B-Instruct-1M"
    threads = 8
    temp = 0.3
"""

from __future__ import annotations

import difflib
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

from platformdirs import user_config_path

from .arguments import size
from .config import (
    DOCUMENT_STORE,
    SamplingConfig,
    SessionConfig,
    WaveConfig,
    environment,
    require_model,
    require_predict,
)
from .errors import SettingsError, UsageError

MAX_BYTES = 1 << 20
Origin = Literal["default", "file", "environment", "flag"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One thing that can be set."""

    name: str
    kind: type
    default: object
    """None: decided by the program when it is needed."""
    check: Callable[[Any], object]
    """Raises UsageError, `--name is VALUE; ...`."""
    variable: str | None = None
    """The NAME of `RETROLOCAL_NAME`, for those that have one."""
    note: str = ""
    """Said of the default."""
    is_option: bool = True
    """Whether commands have an option of this name."""
    place: str = ""
    """Where the parser keeps what is set here, if not where it keeps what the option says."""

    @property
    def destination(self) -> str:
        """Where the parser keeps what the option says."""
        return self.name.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Given:
    """A value, and who gave it."""

    value: object
    origin: Origin
    where: str
    """The file, the variable or the flag; empty for a default."""


def config_file() -> Path:
    """`$RETROLOCAL_CONFIG`, else `config.toml` in the user's configuration directory
    (`$XDG_CONFIG_HOME/retrolocal` on Linux); it need not exist."""
    given = environment("CONFIG")
    if given is not None:
        return Path(given).expanduser().absolute()
    return user_config_path("retrolocal", appauthor=False) / "config.toml"


def given_settings() -> dict[str, Given]:
    """What the file and the variables set, by name.

    Raises SettingsError for the file and UsageError for a variable.
    """
    given, problems = examined_settings()
    if problems:
        raise problems[0]
    return given


def examined_settings() -> tuple[dict[str, Given], list[SettingsError | UsageError]]:
    """What the file and the variables set, by name, without what makes no sense; and that."""
    problems: list[SettingsError | UsageError] = []
    given = _from_file(config_file(), problems)
    for setting in SETTINGS:
        text = None if setting.variable is None else environment(setting.variable)
        if text is not None:
            where = f"$RETROLOCAL_{setting.variable}"
            try:
                value = from_text(setting, text, where)
            except UsageError as problem:
                problems.append(problem)
                continue
            given[setting.name] = Given(value, "environment", where)
    return given, problems


def apply_settings(parser: ArgumentParser) -> None:
    """What is set becomes the default of the parser's options; raises what given_settings does."""
    known = {action.dest for action in parser._actions}
    given = given_settings()
    parser.set_defaults(
        **{
            setting.place or setting.destination: given[setting.name].value
            for setting in SETTINGS
            if setting.name in given and setting.destination in known
        }
    )


def from_text(setting: Setting, text: str, where: str) -> object:
    """The value that a variable or a flag spells; raises UsageError that begins with `where`."""
    value: object = text
    if setting.kind is not str and text != setting.default:
        try:
            value = setting.kind(text)
        except ValueError:
            raise UsageError(f"{where} is {text[:80]!r}; give {_KINDS[setting.kind]}") from None
    try:
        setting.check(value)
    except UsageError as error:
        raise UsageError(f"{where}: {_bare(error)}") from None
    return value


def _from_file(file: Path, problems: list[SettingsError | UsageError]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    try:
        values = _read(file)
    except SettingsError as problem:
        problems.append(problem)
        return given
    known = {setting.name: setting for setting in SETTINGS}
    for key, value in values.items():
        try:
            setting = known.get(key) or _unknown(file, key, known)
            _check(file, setting, value)
        except SettingsError as problem:
            problems.append(problem)
            continue
        value = float(value) if setting.kind is float and type(value) is int else value
        given[key] = Given(value, "file", str(file))
    return given


def _unknown(file: Path, key: str, known: Iterable[str]) -> NoReturn:
    close = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else "remove it (retrolocal config lists all keys)"
    raise SettingsError(f"{file}: unknown key {key[:80]!r}; {hint}")


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if environment("CONFIG") is not None:
            raise SettingsError(f"{file}: there is no such file ($RETROLOCAL_CONFIG)") from None
        return {}
    except OSError as problem:
        raise SettingsError(f"{file} cannot be read ({problem.strerror})") from problem
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{file} is larger than {MAX_BYTES >> 20} MiB; it holds no settings")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        raise SettingsError(f"{file} is not UTF-8 text (byte {problem.start})") from problem
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise SettingsError(f"{file} is not valid TOML ({reason}); correct that line") from problem


def _check(file: Path, setting: Setting, value: object) -> None:
    fits = type(value) is setting.kind or (setting.kind is float and type(value) is int)
    if not fits and not (type(value) is str and value == setting.default):
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        raise SettingsError(f"{file}: {setting.name} is {shown}; give {_KINDS[setting.kind]}")
    try:
        setting.check(value)
    except UsageError as error:
        raise SettingsError(f"{file}: {_bare(error)}") from None


def _bare(error: UsageError) -> str:
    """`--temp is -1.0; ...` as it reads where nobody typed a flag."""
    return str(error).removeprefix("--")


_KINDS: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _library(value: str) -> None:
    if not value.strip():
        raise UsageError("--library is empty; give a folder")


def _budget(value: float | str) -> WaveConfig:
    return WaveConfig(budget=None if isinstance(value, str) else value)


def _ram(value: str) -> SessionConfig:
    return SessionConfig(ram=_size("--ram", value))


def _vram(value: str) -> SessionConfig:
    return SessionConfig(vram=_size("--vram", value) / 2**30)


def _size(name: str, value: str) -> int:
    try:
        return size(value)
    except ValueError:
        raise UsageError(f"{name} is {value[:80]!r}; give a size, such as 4G") from None


def _memory(name: str, check: Callable[[str], SessionConfig], note: str) -> Setting:
    """A setting that says how much memory may be used."""
    return Setting(
        name=name,
        kind=str,
        default=None,
        check=check,
        variable=name.upper(),
        note=note,
        place=f"usual_{name}",
    )


def _part_of(config: type, name: str, option: str | None = None, **facts: Any) -> Setting:
    """A setting that is a field of a dataclass, which checks it; types follow the default."""
    default = next(one.default for one in fields(config) if one.name == name)
    option = option or name.replace("_", "-")
    kind = facts.pop("kind", type(default))
    return Setting(
        name=option,
        kind=kind,
        default=facts.pop("default", default),
        check=lambda value: config(**{name: value}),
        **facts,
    )


_OWN = "the model's own goes before it"

SETTINGS = (
    Setting(
        name="model",
        kind=str,
        default=None,
        check=require_model,
        variable="MODEL",
        note="the best that is here and fits, else builtin",
    ),
    Setting(name="offline", kind=bool, default=False, check=lambda value: None),
    Setting(
        name="library",
        kind=str,
        default=None,
        check=_library,
        variable="LIBRARY",
        note="in the user's data directory",
        is_option=False,
    ),
    _part_of(SessionConfig, "device", variable="DEVICE"),
    _part_of(SessionConfig, "dtype"),
    _part_of(SessionConfig, "quant", variable="QUANT"),
    _memory("ram", _ram, "what is free"),
    _memory("vram", _vram, "all that is free"),
    _part_of(SessionConfig, "threads", note="all cores"),
    _part_of(SessionConfig, "cache"),
    _part_of(SessionConfig, "prefill"),
    _part_of(WaveConfig, "scheme"),
    Setting(name="budget", kind=float, default="auto", check=_budget),
    _part_of(WaveConfig, "index_type"),
    _part_of(WaveConfig, "store_type", default=DOCUMENT_STORE, place="usual_store_type"),
    _part_of(SessionConfig, "ctx_size", note="what the model has positions for"),
    _part_of(SessionConfig, "batch_size"),
    Setting(name="predict", kind=int, default=-1, check=require_predict, note=_OWN),
    _part_of(SamplingConfig, "seed", note="a new one each time"),
    _part_of(SamplingConfig, "temperature", "temp", note=_OWN),
    _part_of(SamplingConfig, "top_k", note=_OWN),
    _part_of(SamplingConfig, "top_p", note=_OWN),
    _part_of(SamplingConfig, "min_p", note=_OWN),
    _part_of(SamplingConfig, "repeat_penalty", note=_OWN),
    _part_of(SamplingConfig, "repeat_last_n"),
    _part_of(SamplingConfig, "presence_penalty"),
    _part_of(SamplingConfig, "frequency_penalty"),
    Setting(name="no-mouse", kind=bool, default=False, check=lambda value: None),
)
"""In the order in which `retrolocal config` shows them."""
