"""Files of a model folder, changed at random: what cannot be used is one line, never a traceback.

A few hundred changes run by default; `pytest -m slow` tries 100,000.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrolocal.chat import ChatTemplate, Message, generation_defaults
from retrolocal.config import WaveConfig
from retrolocal.errors import RetrolocalError, TokenizerError
from retrolocal.hub.cache import missing_file
from retrolocal.library import file_digests
from retrolocal.memory import estimate
from retrolocal.models.checkpoint import read_checkpoint
from retrolocal.models.config import read_config
from retrolocal.tokenizer import Tokenizer

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, math.inf),
    *(math.nan, "", "x", "0", "\0", "\ud800", "é\n\r\x1b[2J", "a" * 10_000, "../../etc/passwd"),
    *("{{ 1 }}", "{% for i in range(10**9) %}{{ i }}{% endfor %}", [], {}, [[]], [None], {"": {}}),
    *({"type": "BPE"}, {"content": "<s>", "id": -1}, ["a", "b"], [[0, 1]], {"a": 2**40}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index below `value`."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:8])
    else:
        return
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(value: Any, draw: random.Random) -> bytes:
    """The JSON of `value` with one to three changes, or with damaged bytes."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = list(places(value))
        if not found:
            break
        *above, last = draw.choice(found)
        holder = value
        for key in above:
            holder = holder[key]
        _change(holder, last, value, draw)
    data = json.dumps(value).encode("utf-8", "surrogatepass")
    if draw.random() < 0.2:
        data = _damaged(data, draw)
    return data


def _change(holder: Any, key: Any, whole: Any, draw: random.Random) -> None:
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = copy.deepcopy(whole)
        case 2 if isinstance(holder, dict):
            holder[draw.choice(("", "type", "rope_scaling", "layer_types", "x"))] = holder[key]
        case 3 if isinstance(holder[key], int):
            holder[key] += draw.choice((-1, 1, 7, 1000, 2**40))
        case _:
            holder[key] = copy.deepcopy(draw.choice(VALUES))


def _damaged(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    match draw.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + draw.randbytes(9) + data[at:]
        case _:
            return b"[" * 5000 + data


def tried(use: Callable[[], object]) -> bool:
    """Whether `use` succeeds; what it raises must be one line for the user."""
    try:
        use()
    except RetrolocalError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert "\x1b" not in text
        assert len(text) < 2000
        return False
    return True


def use_config(folder: Path) -> None:
    config = read_config(folder)
    for wave in (None, WaveConfig(store_type="int8")):
        needed = estimate(
            config,
            weight_bytes=0,
            element_bytes=2,
            tokens=config.max_positions,
            chunk_tokens=8192,
            wave=wave,
        )
        assert needed.total > 0


def use_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    ids = tokenizer.encode("Hello <s> wörld </s>")
    tokenizer.encode_raw("<s>[user]", parse_special=True)
    tokenizer.encode_with_offsets("a b")
    tokenizer.decode(ids)


def use_settings(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    generation_defaults(folder)
    template = ChatTemplate.open(folder, tokenizer)
    if template is not None:
        template.render([Message("user", "hello"), Message("assistant", "you")])


GENERATION = {"eos_token_id": [257, 2], "temperature": 0.6, "top_k": 20, "do_sample": True}
KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "config": ("config.json", use_config),
    "tokenizer": ("tokenizer.json", use_tokenizer),
    "tokenizer_config": ("tokenizer_config.json", use_settings),
    "generation_config": ("generation_config.json", use_settings),
}


def run(kind: str, count: int, tiny_model: Path, folder: Path, seed: int) -> int:
    """Tries `count` changes; how many could still be used."""
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    name, use = KINDS[kind]
    original = json.loads((folder / name).read_bytes())
    used = 0
    for number in range(count):
        draw = random.Random(f"{kind}-{seed}-{number}")
        (folder / name).write_bytes(changed(original, draw))
        try:
            used += tried(lambda: use(folder))
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}, number {number}")
            raise
    return used


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_changes(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    used = run(kind, 100, tiny_model, tmp_path, seed=0)
    assert 0 < used < 100, "changes must be neither all fatal nor all harmless"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_changes(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    assert run(kind, 25_000, tiny_model, tmp_path, seed=1) > 0


def test_what_a_parser_quotes_is_no_command_to_the_terminal(
    tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"version": "1\n\r\x1b[2J\x9b"}))
    with pytest.raises(TokenizerError, match=r"version '1 \\x1b\[2J\\x9b'"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("model.safetensors", read_checkpoint),
        ("model.safetensors.index.json", read_checkpoint),
        ("model.safetensors", lambda folder: file_digests([folder / "model.safetensors"])),
        ("tokenizer.json", Tokenizer.open),
        ("tokenizer_config.json", Tokenizer.open),
    ],
)
def test_nobody_waits_for_what_a_pipe_may_give(
    name: str, use: Callable[[Path], object], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    if name.startswith("model."):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(RetrolocalError, match=rf"{name}:? cannot be read \(a pipe or a device"):
        use(tmp_path)


SHARDED = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


def test_an_index_is_changed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    for number in range(200):
        data = changed(SHARDED, random.Random(number))
        (tmp_path / "model.safetensors.index.json").write_bytes(data)
        assert missing_file(tmp_path) is not None
        assert not tried(lambda: read_checkpoint(tmp_path))


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {})


HOSTILE = {
    "endless": "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}",
    "long range": "{{ range(10**12) | list }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(99) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "repeated": "{{ 'x' * 10**10 }}",
    "repeated list": "{{ [0] * 10**10 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "wide": "{{ '%9999999999d' % 1 }}",
    "centred": "{{ 'x'.center(10**10) }}",
    "formatted": "{{ '{:>9999999999}'.format(1) }}",
    "replaced": "{{ ('a' * 9999).replace('a', 'b' * 9999999) }}",
    "joined": "{{ (['x' * 99999] * 99999) | join }}",
    "star width": "{{ '%*d' % (10**9, 1) }}",
    "width from a value": "{{ '{:>{}}'.format(1, 10**9) }}",
    "padded": "{{ 'x'.ljust(10**10) }}{{ 'x'.zfill(10**10) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(10**6) }}",
    "centred by a filter": "{{ 'x' | center(10**10) }}",
    "formatted by a filter": "{{ '%9999999999d' | format(1) }}",
    "replaced by a filter": "{{ ('a' * 9999) | replace('a', 'b' * 9999999) }}",
    "joined by a method": "{{ ('x' * 99999).join(['x'] * 99999) }}",
    "joined from a map": "{{ 'x'.join((['x' * 99999] * 99999) | map('upper')) }}",
    "summed": "{{ ([[1] * 9999] * 9999) | sum(start=[]) }}",
    "nested": "{% set n = namespace(a=[1]) %}{% for i in range(64) %}"
    "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "nested as JSON": "{% set n = namespace(a=[1]) %}{% for i in range(64) %}"
    "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a | tojson }}",
    "nested as text": "{% set n = namespace(a=[1]) %}{% for i in range(64) %}"
    "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a ~ 'x' }}",
    "nested in a format": "{% set n = namespace(a=[1]) %}{% for i in range(64) %}"
    "{% set n.a = {'a': n.a, 'b': n.a} %}{% endfor %}{{ '%s' % n.a }}",
    "nested in the other format": "{% set n = namespace(a=[1]) %}{% for i in range(64) %}"
    "{% set n.a = [n.a, n.a] %}{% endfor %}{{ '{}'.format(n.a) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "attr": "{{ messages | attr('__class__') }}",
    "map attribute": "{{ messages | map(attribute='__class__') | list }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "caller": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
    "namespace": "{{ namespace.__init__.__globals__ }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "extends": "{% extends '/etc/passwd' %}",
    "tojson": "{{ messages | tojson(indent=10**9) }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "truncated": "{% for i in",
    "mutation": "{% for m in messages %}{% set _ = messages.append(m) %}{% endfor %}",
    "context": "{{ environment }}{{ context.environment.globals }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_gets_nowhere(name: str) -> None:
    rendered: list[str] = []
    if tried(lambda: rendered.append(template(HOSTILE[name]).render([Message("user", "hello")]))):
        # What is refused quietly renders as nothing.
        told = ("<class", "subclasses", "root:", "module", "<function")
        assert len(rendered[0]) < 1000
        assert not any(word in rendered[0] for word in told)
