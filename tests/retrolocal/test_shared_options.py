"""Store types by this program's names and llama.cpp's, for every command that has them."""

from __future__ import annotations

import pytest

from retrolocal.arguments import parsed
from retrolocal.bench.command import decode_parser, prefill_parser
from retrolocal.cli import chat_parser, main
from retrolocal.config import WaveConfig
from retrolocal.errors import UsageError
from retrolocal.shared_options import wave_config


def config_of(words: str) -> WaveConfig:
    arguments = parsed(chat_parser(), words.split())
    assert arguments is not None
    return wave_config(arguments)


@pytest.mark.parametrize(
    ("words", "store"),
    [
        ("", "int8"),
        ("--store-type bf16", "bf16"),
        ("--store-type=int4", "int4"),
        ("-ctk f16 -ctv f16", "bf16"),
        ("-ctk f16 -ctv bf16", "bf16"),
        ("-ctk q8_0 -ctv q8_0", "int8"),
        ("--cache-type-k q4_0 --cache-type-v q4_0", "int4"),
        ("-ctk q4_0", "int4"),
        ("-ctv bf16", "bf16"),
        ("-ctk q8_0 --store-type int8", "int8"),
    ],
)
def test_names_of_store_types(words: str, store: str) -> None:
    assert config_of(words).store_type == store


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--store-type int2", "--store-type is 'int2'; give one of bf16, int8, int4"),
        ("-ctk q5_1 -ctv q5_1", "--cache-type-k is 'q5_1'; give one of f16, bf16, q8_0, q4_0"),
        ("-ctv iq4_nl", "--cache-type-v is 'iq4_nl'; give one of"),
        ("-ctk q8_0 -ctv q4_0", "--cache-type-k q8_0 and --cache-type-v q4_0 contradict"),
        ("-ctk f16 --store-type int8", "--store-type int8 and --cache-type-k f16 contradict"),
    ],
)
def test_a_wrong_type_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as raised:
        config_of(words)
    assert message in str(raised.value)
    assert main(["chat", *words.split(), "-p", "hello"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("parser", [decode_parser, prefill_parser])
def test_benchmarks_have_them_too(parser: object) -> None:
    assert callable(parser)
    arguments = parsed(parser(), ["-ctk", "q4_0", "-ctv", "q4_0"])
    assert wave_config(arguments).store_type == "int4"
