"""`retrolocal bench`: what is handed on, what is refused, and what goes to which stream."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrolocal.bench.options import AttentionOptions, BufferOptions, SpeedOptions
from retrolocal.cli import main
from retrolocal.config import DOCUMENT_STORE, SessionConfig, WaveConfig
from retrolocal.measurement import Progress, Result

ATTENTION: Result = {"tokens": 131072, "results": [{"cache": "dense", "ms": {"median": 1.25}}]}
RESULTS: dict[str, Result] = {
    "attention": ATTENTION,
    "decode": {"results": []},
    "buffer": {"results": []},
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of every benchmark that was started; none is really run."""
    started: list[Any] = []

    def module(result: Result) -> SimpleNamespace:
        def run(options: Any, progress: Progress) -> Result:
            started.append(options)
            progress("half way")
            return result

        return SimpleNamespace(run=run)

    for name, result in RESULTS.items():
        monkeypatch.setitem(sys.modules, f"retrolocal.bench.{name}", module(result))
    return started


def test_attention_with_its_defaults(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention"]) == 0
    assert ran == [AttentionOptions()]
    captured = capsys.readouterr()
    assert captured.err == "half way\n"
    lines = captured.out.splitlines()
    assert lines[0].startswith("compares: a decode step of wave attention with one of dense")
    assert "131,072 synthetic tokens of gain 2, 28 query and 4 KV heads of 128" in lines[0]
    assert lines[1:] == [
        "tokens: 131,072",
        "| cache | ms.median |",
        "| ----- | --------: |",
        "| dense |      1.25 |",
    ]


def test_attention_with_every_option(ran: list[Any]) -> None:
    given = "--tokens 64 --q-heads 6 --kv-heads 3 --head-dim 8 --dtype f32 --store-type bf16"
    more = "--steps 2 --gain 1.5 --repeats 4 --budget 0.5 --index-type bf16 --seed 7 -t 2 --json"
    assert main(["bench", "attention", *given.split(), *more.split()]) == 0
    assert main(["bench", "attention", "--data", "recorded.safetensors", "--tokens", "9"]) == 0
    assert ran == [
        AttentionOptions(
            tokens=64,
            q_heads=6,
            kv_heads=3,
            head_dim=8,
            dtype="f32",
            store_type="bf16",
            steps=2,
            gain=1.5,
            repeats=4,
            budget=0.5,
            index_type="bf16",
            seed=7,
            threads=2,
        ),
        AttentionOptions(data=Path("recorded.safetensors"), tokens=9),
    ]


def test_json_is_alone_on_stdout(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "attention", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    facts = json.loads(captured.out)
    assert facts["compares"] == ran[0].compares
    assert {name: facts[name] for name in ATTENTION} == ATTENTION
    assert captured.err.splitlines() == [f"compares: {facts['compares']}", "half way"]


def test_decode_and_prefill(ran: list[Any]) -> None:
    assert main(["bench", "decode"]) == 0
    assert main(["bench", "prefill"]) == 0
    given = (
        "-m some/model --weights random -d 0,4096,0 -n 8,16 -p512 -r 2 -b 99 -s 3 --dtype float16"
    )
    more = "-dev cpu -t 2 --cache dense,wave --scheme paper --budget 0.5 --revision v1 --offline"
    assert main(["bench", "decode", *given.split(), *more.split()]) == 0
    plain = SessionConfig(wave=WaveConfig(store_type=DOCUMENT_STORE))
    assert ran == [
        SpeedOptions(model="builtin", n_gen=(128,), n_prompt=(0,), session=plain),
        SpeedOptions(model="builtin", n_prompt=(512,), session=plain),
        SpeedOptions(
            model="some/model",
            random_weights=True,
            depths=(0, 4096),
            n_gen=(8, 16),
            n_prompt=(512,),
            repetitions=2,
            caches=("dense", "wave"),
            session=SessionConfig(
                device="cpu",
                dtype="float16",
                wave=WaveConfig(scheme="paper", budget=0.5, store_type=DOCUMENT_STORE),
                batch_size=99,
                threads=2,
                revision="v1",
                offline=True,
            ),
            seed=3,
        ),
    ]
    assert ran[2].tests == [(512, 0), (0, 8), (0, 16)]
    assert ran[0].caches == ("auto",)
    assert tuple(dict.fromkeys(ran[2].caches)) == ("dense", "wave")


def test_buffer(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "buffer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("compares: decode steps of one layer whose clusters lie in a file")
    assert "behind a block cache of 10 %, with steps whose clusters lie in RAM" in lines[0]
    assert "cosine 0.9" in lines[2]
    given = "--tokens 64 --q-heads 6 --kv-heads 3 --head-dim 8 --gain 1.5 --steps 2 --repeats 4"
    more = "--shares 1,2.5 --share 50 --readers 3 --foresight 1 --folder here --seed 7 -t 2 --json"
    assert main(["bench", "buffer", *given.split(), *more.split()]) == 0
    assert main(["bench", "buffer", "--data", "recorded.safetensors"]) == 0
    assert ran == [
        BufferOptions(),
        BufferOptions(
            tokens=64,
            q_heads=6,
            kv_heads=3,
            head_dim=8,
            gain=1.5,
            steps=2,
            repeats=4,
            shares=(1.0, 2.5),
            share=50.0,
            readers=3,
            foresight=1.0,
            folder=Path("here"),
            seed=7,
            threads=2,
        ),
        BufferOptions(data=Path("recorded.safetensors")),
    ]


def test_what_is_compared_is_said_first(ran: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["decode", "-d", "0,4096", "-p", "16", "--cache", "dense,wave", "--weights", "random"]
    assert main(["bench", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "compares: tokens per second of a whole model, builtin, reading a prompt (pp) and "
        "generating token by token (tg) with a dense and a wave cache at depth 0 and 4,096"
    )
    assert "with an auto cache at depth 0" in SpeedOptions(model="builtin", n_gen=(1,)).compares
    notes = [line for line in lines if line.startswith("note: ")]
    assert lines[1:5] == notes
    assert "synthetic keys and values" in notes[0]
    assert "random: speed is measured, not fidelity" in notes[1]
    assert "take turns" in notes[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "needs a command; give attention, decode, prefill"),
        ("cake", "no command 'cake'; give attention"),
        ("attention --tokens 0", "--tokens is 0"),
        ("attention --tokens 99999999999", "--tokens is 99,999,999,999"),
        ("attention --tokens many", "--tokens is 'many'; give a whole number"),
        ("attention --steps -1", "--steps is -1"),
        ("attention --repeats 0", "--repeats is 0"),
        ("attention --q-heads 6", "--q-heads is 6 and --kv-heads 4"),
        ("attention --kv-heads 0", "--kv-heads is 0"),
        ("attention --head-dim 7", "--head-dim is 7"),
        ("attention --gain 0", "--gain is 0.0"),
        ("attention --gain inf", "--gain is inf"),
        ("attention --dtype f16", "--dtype is 'f16'; give one of bf16, f32"),
        ("attention --budget 2", "--budget is 2.0"),
        ("attention --budget much", "--budget is 'much'; give a budget (auto or a fraction)"),
        ("attention --seed -1", "--seed is -1"),
        ("attention -t 1000", "--threads is 1000"),
        ("attention --data a --q-heads 8", "--data and --q-heads were both given"),
        ("attention --scheme paper", "no option --scheme"),
        ("attention more", "'more' is not an option"),
        ("attention --tokens", "--tokens needs a value"),
        ("buffer --steps 1", "--steps is 1"),
        ("buffer --shares 1,x", "--shares is '1,x'; give a list (N or N,N,...)"),
        ("buffer --shares 0", "--shares is 0; give percent above 0"),
        ("buffer --shares nan", "--shares is nan"),
        ("buffer --share 101", "--share is 101"),
        ("buffer --readers 0", "--readers is 0"),
        ("buffer --readers 1000", "--readers is 1000"),
        ("buffer --foresight 0", "--foresight is 0"),
        ("buffer --foresight 1.1", "--foresight is 1.1"),
        ("buffer --q-heads 6", "--q-heads is 6 and --kv-heads 4"),
        ("buffer --data a --gain 1", "--data and --gain were both given"),
        ("decode -n 0", "nothing to time"),
        ("prefill -p 0", "nothing to time"),
        ("prefill -n 8", "no option -n"),
        ("decode -n -1", "--n-gen is -1"),
        ("decode -d 1,x", "--n-depth is '1,x'; give a list (N or N,N,...)"),
        ("decode -d 0,-4", "--n-depth is -4"),
        ("decode -p=-4", "--n-prompt is -4"),
        ("decode -r 0", "--repetitions is 0"),
        ("decode -b 0", "--batch-size is 0"),
        ("decode --cache dense,fast", "--cache is 'fast'"),
        ("decode --weights none", "--weights is 'none'; give one of checkpoint, random"),
        ("decode --dtype int8", "--dtype is 'int8'"),
        ("decode --model=", "--model is empty"),
        ("decode --seed 9223372036854775808", "--seed is"),
    ],
)
def test_wrong_usage_is_one_line(
    words: str, message: str, ran: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("retrolocal: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert ran == []
