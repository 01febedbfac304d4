from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from retrolocal.chat import ChatTemplate, Message, generation_defaults
from retrolocal.errors import ModelError, TokenizerError

SYSTEM = Message("system", "Be  brief. <b>ü</b>")
USER = Message("user", " What is 2 + 2?\n")
REPLY = Message("assistant", "4")
THOUGHT = Message("assistant", "<think>\n2 and 2 ...\n</think>\n\n4")
CHATS = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, REPLY, USER],
    "system and turns": [SYSTEM, USER, REPLY, USER, REPLY],
    "thinking": [USER, THOUGHT, USER, Message("assistant", "<think>\nAgain?\n</think>\n\n4!")],
}
REAL = (
    "Qwen2.5/tokenizer_config.json",
    "Llama-3.x/tokenizer_config.json",
    "Llama-3.x/llama3.1.chat_template.jinja",
    "SmolLM2/chat_template.jinja",
    "chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja",
    "chat_templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
    "chat_templates/meta-llama-Llama-3.2-3B-Instruct.jinja",
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source: str, *messages: Message, **tokens: str) -> str:
    return ChatTemplate(source, {**TOKENS, **tokens}).render(messages)


def write(folder: Path, **files: object) -> Path:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        name = name.replace("_jinja", ".jinja").replace("_json", ".json")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def opened(folder: Path) -> ChatTemplate | None:
    return ChatTemplate.open(folder, SimpleNamespace(special_tokens=TOKENS))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_equals_transformers(material: Path, name: str, chat: str, prompt: bool) -> None:
    reference = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (material / "tokenizers" / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        source = json.loads(source)["chat_template"]
    messages = CHATS[chat]
    now = datetime.now()
    (expected,), _ = reference.render_jinja_template(
        conversations=[[{"role": m.role, "content": m.content} for m in messages]],
        chat_template=source,
        add_generation_prompt=prompt,
        **TOKENS,
    )
    template = ChatTemplate(source, TOKENS)
    assert template.render(messages, add_generation_prompt=prompt, now=now) == expected
    assert USER.content.strip() in expected
    assert not template.takes_documents


def test_a_template_sees_what_it_is_given() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}|{{ m['content'] }}]{% endfor %}"
    assert render(source, SYSTEM, USER) == (
        "<s>[system|Be  brief. <b>ü</b>][user| What is 2 + 2?\n]"
    )


def test_blocks_are_trimmed_as_in_transformers() -> None:
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"


def test_loop_controls_and_loop_variables() -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
        "{{ loop.index }}/{{ loop.length }}{{ m.content }}{{ ';' if not loop.last }}"
        "{% if loop.index == 3 %}{% break %}{% endif %}{% else %}none{% endfor %}"
    )
    messages = [Message("user", text) for text in "abcd"]
    assert render(source, *messages) == "1/4a;3/4c;"
    assert render(source) == "none"


def test_loops_with_conditions_recursion_and_unpacking() -> None:
    assert render("{% for i in range(6) if i % 2 %}{{ i }}{% endfor %}") == "135"
    assert render("{% for k, v in {'a': 1}.items() %}{{ k ~ v ~ none }}{% endfor %}") == "a1None"
    recursive = (
        "{% for x in [1, [2, 3]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}"
    )
    assert render(recursive) == "123"


def test_namespaces_and_arithmetic() -> None:
    source = (
        "{% set ns = namespace(n=1) %}{% set ns.n = ns.n * 3 + 2 ** 4 %}{{ ns.n }}{{ '=' * 3 }}"
    )
    assert render(source) == "19==="
    assert render("{{ ([1] + [2]) | length }}{{ 'a' + 'b' }}{{ 1.5 + 1 }}") == "2ab2.5"


def test_json_is_not_escaped_for_a_page() -> None:
    assert render("{{ {'ä': '<b>'} | tojson }}") == '{"ä": "<b>"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"


def test_generation_blocks_are_rendered() -> None:
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b", REPLY) == "a4b"


def test_the_date_is_the_one_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {})
    assert template.render([], now=datetime(2024, 7, 26)) == "26 Jul 2024"
    assert template.render([]) == datetime.now().strftime("%d %b %Y")


def test_documents() -> None:
    source = "{% if documents %}{{ documents[0]['text'] }}{% endif %}{{ messages | length }}"
    template = ChatTemplate(source, {})
    assert template.takes_documents
    assert template.render([USER], documents=["a text", "b"]) == "a text1"
    assert template.render([USER]) == "1"
    assert not ChatTemplate("{# documents #}{{ 'documents' }}", {}).takes_documents


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{",
        "{% unknown %}",
        "{{ x | nofilter }}",
        "(" * 50 + "{{ " + "(" * 100_000,
        "".join(f"{{% for a{i} in [1] %}}" for i in range(30)) + "{% endfor %}" * 30,
        "x" * (1 << 20) + "x",
    ],
    ids=["for", "open", "tag", "filter", "deep", "nested", "long"],
)
def test_damaged_templates_are_one_line(source: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        ChatTemplate(source, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "failed: roles must alternate"),
        ("{{ raise_exception('two\nlines') }}", "failed: two lines"),
        ("{{ nobody.name }}", "'nobody' is undefined"),
        ("{{ messages.append(1) }}", "not callable|unsafe|immutable"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace(__init__=1) %}", "cannot hold"),
        ("{% set ns = namespace(a=1) %}{% set ns._b = 1 %}", "cannot hold"),
        ("{{ range(1000000000) }}", "Range too big"),
        ("{% for m in 5 %}{% endfor %}", "not iterable"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7].content }}", "no element|undefined"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ '%d' | format('x') }}", "number"),
        ("{{ lipsum(n=100000000) }}", "undefined"),
        ("{{ 10 ** 10 ** 10 }}", "ordinary size"),
        ("{{ 'a' * 10 ** 10 }}", "far larger"),
        ("{{ [0] * 65000 * 65000 }}", "far larger"),
    ],
)
def test_failures_are_one_line(source: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        render(source, USER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "loops more than",
        ),
        (
            "{% set r = range(9999) | list %}{% for a in r %}{% for b in r %}{% for c in r %}"
            "{% endfor %}{% endfor %}{% endfor %}",
            "loops more than",
        ),
        ("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "far more text"),
        (
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}"
            "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "far larger",
        ),
        (
            "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}"
            "{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "far larger",
        ),
    ],
)
def test_endless_and_gigantic_renderings_stop(source: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        render(source)


def test_a_long_message_is_no_abuse() -> None:
    text = "word " * 2_000_000
    source = "{% for m in messages %}{{ '<' + m.content ~ '>' }}{% endfor %}"
    assert len(render(source, Message("user", text))) == len(text) + 2


def test_the_file_wins_over_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config_json={"chat_template": "from config"})
    template = opened(tmp_path)
    assert template is not None
    assert template.render([]) == "from config"
    write(tmp_path, chat_template_json={"chat_template": "from json"})
    template = opened(tmp_path)
    assert template is not None
    assert template.render([]) == "from json"
    write(tmp_path, chat_template_jinja="from file ä{{ eos_token }}")
    template = opened(tmp_path)
    assert template is not None
    assert template.render([]) == "from file ä</s>"


def test_the_default_of_several(tmp_path: Path) -> None:
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    template = opened(write(tmp_path, tokenizer_config_json={"chat_template": several}))
    assert template is not None
    assert template.render([]) == "d"
    write(tmp_path, tokenizer_config_json={"chat_template": several[:1]})
    with pytest.raises(TokenizerError, match=r"none of the chat templates \(rag\)"):
        opened(tmp_path)


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    assert opened(tmp_path) is None
    assert opened(write(tmp_path, tokenizer_config_json={"chat_template": None})) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b'{"chat_template": 7}'),
        ("tokenizer_config.json", b'{"chat_template": "{% for %}"}'),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", b"{{"),
        ("chat_template.jinja", b" " * (16 << 20) + b" "),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=name.replace(".", r"\.")) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_generation_defaults_of_a_real_model(material: Path) -> None:
    found = generation_defaults(material / "tokenizers/Qwen2.5")
    assert found.stop_ids == {151645, 151643}
    assert (found.temperature, found.top_k, found.top_p) == (0.7, 20, 0.8)
    assert found.sampling == {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repeat_penalty": 1.05,
    }
    assert (found.repeat_penalty, found.min_p, found.max_new_tokens) == (1.05, None, None)


def test_generation_defaults_gather_stops(tmp_path: Path) -> None:
    assert generation_defaults(tmp_path).stop_ids == frozenset()
    write(
        tmp_path, config_json={"eos_token_id": [3, 4]}, generation_config_json={"eos_token_id": 5}
    )
    assert generation_defaults(tmp_path, stop_ids=[9]).stop_ids == {3, 4, 5, 9}


def test_sampling_switched_off_is_temperature_zero(tmp_path: Path) -> None:
    write(tmp_path, generation_config_json={"do_sample": False, "temperature": 0.6, "top_k": None})
    found = generation_defaults(tmp_path)
    assert (found.temperature, found.top_k) == (0.0, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "2"),
        ("eos_token_id", [1, True]),
        ("eos_token_id", -1),
        ("temperature", "hot"),
        ("temperature", -0.5),
        ("temperature", math.nan),
        ("top_p", 1.5),
        ("min_p", True),
        ("top_k", 2.5),
        ("max_new_tokens", -1),
        ("do_sample", 1),
        ("repetition_penalty", []),
        ("repetition_penalty", 0),
    ],
)
def test_mistyped_keys_are_named(tmp_path: Path, key: str, value: object) -> None:
    write(tmp_path, generation_config_json={key: value})
    with pytest.raises(ModelError, match=rf"generation_config\.json: {key} is .*; it must be"):
        generation_defaults(tmp_path)


def test_damaged_defaults_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, generation_config_json="{")
    with pytest.raises(ModelError, match="is damaged"):
        generation_defaults(tmp_path)
