"""What /set changes about the answers that follow: names and values as the command line has them.

Knows no widget and no engine.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import SamplingConfig, require_predict
from ..errors import UsageError
from .engine import PREDICT
from .prompt_bar import Completion

DEFAULT = "default"
"""The value that stands for the model's own."""


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    """Of the option, without its dashes."""
    field: str
    """Of SamplingConfig, or `max_new_tokens`."""
    kind: type[int] | type[float]
    what: str


SETTINGS: tuple[Setting, ...] = (
    Setting("temp", "temperature", float, "0 is greedy"),
    Setting("top-k", "top_k", int, "keep the k likeliest tokens; 0: all"),
    Setting("top-p", "top_p", float, "keep this much probability; 1: all"),
    Setting("min-p", "min_p", float, "keep tokens this likely beside the likeliest; 0: all"),
    Setting("repeat-penalty", "repeat_penalty", float, "of tokens that occurred lately; 1: none"),
    Setting("repeat-last-n", "repeat_last_n", int, "tokens that penalties look at; -1: all"),
    Setting("presence-penalty", "presence_penalty", float, "once per token that occurred; 0: none"),
    Setting("frequency-penalty", "frequency_penalty", float, "each time it occurred; 0: none"),
    Setting("seed", "seed", int, "of the draw; -1: a new one each time"),
    Setting("predict", PREDICT, int, "tokens of an answer at most; -1: as many as fit"),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS} | {
    other: next(setting for setting in SETTINGS if setting.name == name)
    for other, name in (
        ("temperature", "temp"),
        ("n-predict", "predict"),
        ("num-predict", "predict"),
    )
}


def parse(argument: str) -> tuple[Sequence[Setting], float | None, bool]:
    """Which settings, the value, and whether one was given; None is the model's own value.

    `temp 0.7`, or as in ollama `parameter temperature 0.7`. Raises UsageError.
    """
    words = argument.split()
    if words[:1] == ["parameter"]:
        del words[0]
    if not words:
        return SETTINGS, None, False
    name = words[0].lower().lstrip("-").replace("_", "-")
    setting = _BY_NAME.get(name)
    if setting is None:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean {near[0]}?" if near else "/set lists what there is"
        raise UsageError(f"there is no setting {words[0]}; {hint}")
    if len(words) > 2:
        raise UsageError(f"/set {setting.name} takes one value, and {len(words) - 1} were given")
    if len(words) == 1:
        return (setting,), None, False
    return (setting,), _value(setting, words[1]), True


def _value(setting: Setting, text: str) -> float | None:
    if text == DEFAULT:
        return None
    try:
        value = setting.kind(text)
    except ValueError as error:
        kind = "a whole number" if setting.kind is int else "a number"
        raise UsageError(f"/set {setting.name} {text}: give {kind}, or {DEFAULT}") from error
    if setting.field != PREDICT:
        SamplingConfig(**{setting.field: value})  # type: ignore[arg-type]
    else:
        require_predict(int(value))
    return value


def listed(settings: Sequence[Setting], values: Mapping[str, float | None]) -> str:
    """A line for each: name, value (where it is known), what it means."""
    return "\n".join(
        f"{setting.name:<18}{_shown(values, setting.field):<19}{setting.what}"
        for setting in settings
    )


def _shown(values: Mapping[str, float | None], field: str) -> str:
    value = values.get(field)
    if value is None:
        return "the model's own"
    return str(value) if isinstance(value, int) else f"{value:g}"


def complete(argument: str, before: str) -> list[Completion]:
    """How the name of a setting may go on."""
    return [
        Completion(f"{before}{setting.name} ", setting.name, setting.what)
        for setting in SETTINGS
        if setting.name.startswith(argument)
    ]
