"""Messages to a prompt, by the chat template that comes with the model.

A template is a program from the network: it runs in Jinja's immutable sandbox with a budget of loop
steps and of text, and whatever goes wrong in it is one line of TokenizerError. What it renders is
what `transformers` renders. Also reads what the model's authors recommend for generation. Knows no
tokenizer beyond the names of its special tokens.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2 import ext, meta, nodes, parser, sandbox, utils, visitor

from .errors import ModelError, TokenizerError, UsageError
from .files import one_line, parse_object, read_limited
from .template_limits import check_call, check_format, limit_filters, weigh

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_LOOP_STEPS = 1_000_000
MAX_EXTRA_CHARACTERS = 16 << 20
"""What a template may write beyond four times what it was given."""
MAX_FACTOR = 1 << 16
"""The largest number that `*` and `**` take: a power then has at most a few hundred kB."""
MAX_COPIED = 1 << 30
"""Characters and elements that all `+`, `~` and `*` of one rendering may copy."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    """`system`, `user` or `assistant`; the template decides what it takes."""
    content: str

    def __post_init__(self) -> None:
        """Raises UsageError: Python hands on anything."""
        if not isinstance(self.content, str):
            raise UsageError(f"a message is {reprlib.repr(self.content)}; give text")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What the model's authors recommend; None where they say nothing."""

    stop_ids: frozenset[int]
    """Tokens that end a reply."""
    temperature: float | None = None
    """0 where sampling is switched off."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_new_tokens: int | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """The recommended fields of SamplingConfig, by name."""
        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class HasSpecialTokens(Protocol):
    @property
    def special_tokens(self) -> dict[str, str]: ...


class ChatTemplate:
    """A compiled template. Any thread may render."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises TokenizerError when `source` is no template."""
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TokenizerError(f"the chat template is {len(source)} characters long; it is none")
        self._special_tokens = dict(special_tokens)
        self._environment = _environment()
        try:
            tree = self._environment.parse(source)
            self._variables = meta.find_undeclared_variables(tree)
            self._template = self._environment.from_string(_Bounded().visit(tree))
        except (*_FAULTS, SyntaxError) as error:
            raise TokenizerError(f"the chat template is damaged ({one_line(error)})") from error

    @classmethod
    def open(cls, folder: Path, tokenizer: HasSpecialTokens) -> ChatTemplate | None:
        """The template of a model folder, None when it has none.

        Raises TokenizerError, naming the file, when there is one that cannot be used.
        """
        for name, read in _SOURCES.items():
            path = folder / name
            data = read_limited(path, TokenizerError)
            source = None if data is None else read(path, data)
            if source is not None:
                try:
                    return cls(source, tokenizer.special_tokens)
                except TokenizerError as error:
                    raise TokenizerError(f"{path}: {error}") from error
        return None

    @property
    def takes_documents(self) -> bool:
        """Whether the template has a place of its own for documents."""
        return "documents" in self._variables

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        documents: Sequence[str] = (),
        now: datetime | None = None,
    ) -> str:
        """The prompt text, special tokens spelled out, so it must be encoded without adding any.

        `now` is the time the template sees. Raises TokenizerError when the template refuses the
        messages (some take no system message, or want roles to alternate) or fails.
        """
        given = sum(len(m.content) for m in messages) + sum(map(len, documents))
        budget = _Budget(MAX_LOOP_STEPS, MAX_EXTRA_CHARACTERS + 4 * given)
        try:
            pieces = self._template.generate(
                {
                    **self._special_tokens,
                    "messages": [{"role": m.role, "content": m.content} for m in messages],
                    "tools": None,
                    "documents": [{"text": text} for text in documents] or None,
                    "add_generation_prompt": add_generation_prompt,
                    "strftime_now": lambda form: (now or datetime.now()).strftime(form),
                    _BUDGET: budget,
                }
            )
            return "".join(budget.written(piece) for piece in pieces)
        except _FAULTS as error:
            raise TokenizerError(f"the chat template failed: {one_line(error)}") from error


def generation_defaults(folder: Path, *, stop_ids: Iterable[int] = ()) -> GenerationDefaults:
    """Reads generation_config.json and config.json; either may be missing.

    `stop_ids` are added to those the files name. Raises ModelError naming a mistyped key.
    """
    generation = _Settings(folder / "generation_config.json")
    found = {*stop_ids, *generation.ids("eos_token_id")}
    found.update(_Settings(folder / "config.json").ids("eos_token_id"))
    temperature = generation.number("temperature")
    return GenerationDefaults(
        stop_ids=frozenset(found),
        temperature=0.0 if generation.flag("do_sample") is False else temperature,
        top_k=generation.integer("top_k"),
        top_p=generation.number("top_p", most=1.0),
        min_p=generation.number("min_p", most=1.0),
        repeat_penalty=generation.number("repetition_penalty", least=_SMALLEST),
        max_new_tokens=generation.integer("max_new_tokens"),
    )


# What a template can raise, from its own fault or ours; the sandbox's refusals are TemplateErrors.
_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

_BUDGET = "_budget"


class _Budget:
    """How much one rendering may still do."""

    def __init__(self, steps: int, characters: int) -> None:
        self._steps = steps
        self._characters = characters
        self._longest = characters
        self._copied = MAX_COPIED

    def steps(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._steps -= 1
            if self._steps < 0:
                raise jinja2.TemplateError(f"it loops more than {MAX_LOOP_STEPS} times")
            yield item

    def written(self, piece: str) -> str:
        self._characters -= len(piece)
        if self._characters < 0:
            raise jinja2.TemplateError("it writes far more text than it was given")
        return piece

    def made(self, length: int) -> None:
        """Accounts for one intermediate text or list, before or after it is made."""
        self._copied -= length
        self.fits(length if self._copied >= 0 else 1 << 62)

    def fits(self, length: int) -> None:
        """Whether one text or list may be so long."""
        if length > self._longest:
            raise jinja2.TemplateError("it makes values far larger than it was given")

    def joined(self, pieces: Sequence[Any]) -> str:
        texts = [str(weigh(self, piece)) for piece in pieces]
        self.made(sum(map(len, texts)))
        return "".join(texts)


class _Bounded(visitor.NodeTransformer):
    """Puts every loop and every `~` of a template under the budget."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._filter("_steps", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return self._filter("_joined", nodes.List(node.nodes, lineno=node.lineno))

    @staticmethod
    def _filter(name: str, value: nodes.Node) -> nodes.Filter:
        assert isinstance(value, nodes.Expr)
        return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with arithmetic that cannot make gigantic values."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        args = check_call(__context[_BUDGET], __obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__)
        return wrapped

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        sized = [len(side) if isinstance(side, _SIZED) else None for side in (left, right)]
        if operator == "%":
            check_format(left)
            weigh(context[_BUDGET], right)
        elif operator == "+" and None not in sized:
            context[_BUDGET].made(sum(length or 0 for length in sized))
        elif operator == "*" and sized != [None, None]:
            length = next(length for length in sized if length is not None)
            times = right if sized[0] is not None else left
            context[_BUDGET].made(max(0, length * times))
        elif operator in ("*", "**") and any(abs(side) > MAX_FACTOR for side in (left, right)):
            raise jinja2.TemplateError(f"{operator} is only for numbers of ordinary size")
        return super().call_binop(context, operator, left, right)


_SIZED = (str, list, tuple)


class _Namespace(utils.Namespace):
    """Jinja's, without underscored names, as `transformers` has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"a namespace cannot hold the name {name}")


class _Generation(ext.Extension):
    """`{% generation %}`, which marks a reply for training and renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - the name Jinja reads

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> jinja2.Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    limit_filters(environment.filters, _BUDGET)
    environment.finalize = jinja2.pass_context(lambda c, value: weigh(c[_BUDGET], value))
    environment.filters["_steps"] = jinja2.pass_context(lambda c, items: c[_BUDGET].steps(items))
    environment.filters["_joined"] = jinja2.pass_context(lambda c, items: c[_BUDGET].joined(items))
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["namespace"] = _Namespace
    return environment


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _template_text(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is damaged ({error.reason})") from error


def _template_entry(path: Path, data: bytes) -> str | None:
    """`chat_template` of a JSON file: a text, or a list of named ones with a default."""
    entry = parse_object(path, data, TokenizerError).get("chat_template")
    if isinstance(entry, list):
        named = {e.get("name"): e.get("template") for e in entry if isinstance(e, dict)}
        entry = named.get("default")
        if entry is None and named:
            names = ", ".join(sorted(map(str, named)))
            raise TokenizerError(f"{path}: none of the chat templates ({names}) is the default")
    if entry is not None and not isinstance(entry, str):
        raise TokenizerError(f"{path}: chat_template is {entry!r:.60}; it must be a string")
    return entry


_SOURCES: dict[str, Callable[[Path, bytes], str | None]] = {
    "chat_template.jinja": _template_text,
    "chat_template.json": _template_entry,
    "tokenizer_config.json": _template_entry,
}


class _Settings:
    """A JSON file of optional keys, each read as what it must be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = read_limited(path, ModelError)
        self._values = {} if data is None else parse_object(path, data, ModelError)

    def flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._fault(key, "true or false")

    def integer(self, key: str) -> int | None:
        value = self._values.get(key)
        if value is None or (_is_integer(value) and value >= 0):
            return value
        raise self._fault(key, "an integer, 0 or more")

    def number(self, key: str, least: float = 0.0, most: float = math.inf) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        is_number = isinstance(value, float) or (_is_integer(value) and abs(value) < 1 << 63)
        if is_number and math.isfinite(value) and least <= value <= most:
            return float(value)
        lowest = "above 0" if least else "0 or more"
        limit = lowest if most == math.inf else f"between 0 and {most:g}"
        raise self._fault(key, f"a number, {limit}")

    def ids(self, key: str) -> list[int]:
        value = self._values.get(key)
        if value is None:
            return []
        ids = value if isinstance(value, list) else [value]
        if all(_is_integer(i) and i >= 0 for i in ids):
            return ids
        raise self._fault(key, "a token id or a list of them")

    def _fault(self, key: str, wanted: str) -> ModelError:
        return ModelError(f"{self._path}: {key} is {self._values[key]!r:.60}; it must be {wanted}")


_SMALLEST = 1e-9


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
