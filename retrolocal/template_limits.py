"""What a chat template may ask of texts and lists, refused before it makes gigantic values.

Python formats, pads and copies without asking how much; a template from the network can fill the
memory with twenty characters. Every call of a text's method, every filter that makes a text and
every value that is written is weighed first. Knows no template and no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jinja2

MAX_NUMBER = 1 << 16
"""The largest width, count or indent."""
MAX_ELEMENTS = 1 << 18
"""What a value that is written out may consist of."""
_WIDE = re.compile(r"\d{5,}|%[^a-zA-Z%]*\*|\{[^{}]*\{")
"""In a format: a width of five digits, or one that comes from a value."""
_CONTAINERS = (list, tuple, dict, set, frozenset)
_PLAIN = "_plain_"
"""Begins the name under which a filter's own function is kept."""


class Budget(Protocol):
    """What one rendering may still make."""

    def made(self, length: int) -> None:
        """Accounts for one value that is made; raises TemplateError."""
        ...

    def fits(self, length: int) -> None:
        """Raises TemplateError when one value of this length would be too long."""
        ...


def weight(value: Any) -> int:
    """Characters and elements of `value` written out, shared parts as often as they occur.

    Values of more than MAX_ELEMENTS, which few texts and lists can make by holding one another,
    weigh more than any budget.
    """
    waiting, characters, elements = [value], 0, 0
    while waiting:
        one = waiting.pop()
        elements += 1
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, _CONTAINERS):
            if elements + len(waiting) + len(one) > MAX_ELEMENTS:
                return 1 << 62
            waiting += [*one, *one.values()] if isinstance(one, dict) else one
    return characters + elements


def weigh(budget: Budget, value: Any) -> Any:
    """`value`, if writing it out is within the budget."""
    if isinstance(value, _CONTAINERS):
        budget.made(weight(value))
    return value


def check_format(text: object) -> None:
    """Refuses a format with a gigantic width."""
    if isinstance(text, str) and _WIDE.search(text):
        raise jinja2.TemplateError("it formats to a gigantic width")


def check_call(
    budget: Budget, called: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a call that a template makes, if they are within the budget."""
    # Jinja puts a function of its own before `format`.
    called = getattr(called, "__wrapped__", called)
    text, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if not isinstance(text, str):
        return args
    budget.made(len(text))
    if name.startswith("format"):
        weigh(budget, [args, options])
    elif name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _check_numbers(args)
        times = 1 + text.count("\t") if name == "expandtabs" else 1
        budget.made(len(text) + times * sum(arg for arg in args if isinstance(arg, int)))
    elif name == "replace":
        _weigh_replacing(budget, text, *args[:2])
    elif name == "join" and args:
        return (_weighed_items(budget, text, args[0]), *args[1:])
    elif name == "translate":
        raise jinja2.TemplateError("translate is not for chat templates")
    return args


def limit_filters(filters: dict[str, Callable[..., Any]], budget_of: str) -> None:
    """Puts the filters that make texts under the budget that the context has as `budget_of`."""

    def limited(name: str, check: Callable[..., tuple[Any, ...]]) -> None:
        filters[_PLAIN + name] = filters[name]

        @jinja2.pass_context
        def checked(context: jinja2.runtime.Context, value: Any, *args: Any, **options: Any) -> Any:
            budget = context[budget_of]
            budget.made(len(value) if isinstance(value, str) else 0)
            value, *rest = check(budget, weigh(budget, value), *args, **options)
            return context.environment.call_filter(
                _PLAIN + name, value, rest, options, context=context
            )

        filters[name] = checked

    for name in ("tojson", "string", "pprint", "upper", "lower", "title", "capitalize", "trim"):
        limited(name, _numbers)
    for name in ("escape", "e", "forceescape", "urlencode", "urlize", "xmlattr", "striptags"):
        limited(name, _numbers)
    for name in ("center", "wordwrap", "truncate", "batch", "slice", "round"):
        limited(name, _numbers)
    for name, check in {
        "indent": _indent,
        "format": _format,
        "replace": _replace,
        "join": _join,
        "sum": _sum,
    }.items():
        limited(name, check)


def _numbers(budget: Budget, value: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
    _check_numbers((*args, *options.values()))
    return value, *args


def _indent(budget: Budget, value: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
    every = (*args, *options.values())
    _check_numbers(every)
    widths = [len(one) if isinstance(one, str) else one for one in every]
    lines = 1 + str(value).count("\n")
    budget.made(lines * max([4, *(width for width in widths if isinstance(width, int))]))
    return value, *args


def _format(budget: Budget, value: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
    check_format(value)
    weigh(budget, [args, options])
    return value, *args


def _replace(budget: Budget, value: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
    old, new = (*args, options.get("old", ""), options.get("new", ""))[:2]
    _weigh_replacing(budget, str(value), old, new)
    return value, *args


def _join(budget: Budget, value: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
    between = args[0] if args else options.get("d", "")
    return _weighed_items(budget, between, value), *args


def _sum(budget: Budget, value: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
    if not all(isinstance(one, int | float | str | None) for one in (*args, *options.values())):
        raise jinja2.TemplateError("sum is only for numbers")
    return value, *args


def _weigh_replacing(budget: Budget, text: str, old: Any = "", new: Any = "") -> None:
    if isinstance(old, str) and isinstance(new, str):
        budget.made(len(text) + text.count(old) * len(new))


def _weighed_items(budget: Budget, between: object, items: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    length, step = 0, len(str(between))
    for item in items:
        length += weight(item) + step
        # Before the next one is made: they are all held at once.
        budget.fits(length)
        found.append(item)
    budget.made(length)
    return found


def _check_numbers(values: Iterable[Any]) -> None:
    if any(isinstance(value, int | float) and abs(value) > MAX_NUMBER for value in values):
        raise jinja2.TemplateError(f"it asks for a number above {MAX_NUMBER}")
