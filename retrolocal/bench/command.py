"""The command lines of `retrolocal bench`. No torch: what measures is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import command_parser, fractions, names, numbers
from ..config import WaveConfig
from ..errors import UsageError
from ..measurement import (
    Measurement,
    chosen_model,
    common_options,
    facts_and_table,
    run_one_of,
)
from ..shared_options import (
    batch_option,
    budget_option,
    device_options,
    loading_config,
    model_options,
    prefill_option,
    wave_config,
    wave_options,
)
from .options import (
    AttentionOptions,
    BufferOptions,
    SpeedOptions,
)
from .table import speed_table
from .whole_programs import (
    all_options,
    all_parser,
    load_lines,
    load_options,
    load_parser,
    reopen_options,
    reopen_parser,
)

CLOSING = "Time generation after 128K tokens:  retrolocal bench decode -d 131072 --cache dense,wave"


def bench(arguments: Sequence[str]) -> int:
    """Runs `retrolocal bench ARGUMENTS...`; returns the exit code."""
    return run_one_of("bench", BENCHES, CLOSING, arguments)


def attention_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench attention",
        "retrolocal bench attention [options]",
        "Times a decode step of attention alone, wave against dense, over the keys and values of "
        "one layer. It needs no model.",
    )
    _data_options(parser.add_argument_group("data"))
    _format_options(parser.add_argument_group("cache"))
    group = parser.add_argument_group("run")
    group.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="R",
        help="timed passes over all steps (default: %(default)s)",
    )
    group.add_argument(
        "--prompt",
        action="store_true",
        help="read all tokens through one layer, once, in place of decode steps",
    )
    _device_option(group)
    common_options(group)
    return parser


def decode_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench decode",
        "retrolocal bench decode [-m MODEL] [-d N,...] [-n N,...] [-p N,...] [options]",
        "Times a whole model that generates with a context of some depth, like llama-bench.",
    )
    group = parser.add_argument_group("tests")
    group.add_argument(
        "-n",
        "--n-gen",
        type=numbers,
        default="128",
        metavar="N[,N...]",
        help="tokens to generate; 0: no generation (default: %(default)s)",
    )
    _speed_options(parser, group, prompt="0")
    return parser


def prefill_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench prefill",
        "retrolocal bench prefill [-m MODEL] [-p N,...] [-d N,...] [options]",
        "Times a whole model that reads a prompt after a context of some depth, like llama-bench.",
    )
    _speed_options(parser, parser.add_argument_group("tests"), prompt="512")
    return parser


def buffer_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench buffer",
        "retrolocal bench buffer [options]",
        "Times decode steps of one layer whose keys and values lie in a file, behind a block cache "
        "and threads that read ahead, against steps that have them in RAM; counts the hits of "
        "block caches of several sizes. On a GPU: in pinned memory, behind a block cache there. "
        "It needs no model.",
    )
    _data_options(parser.add_argument_group("data"), steps=64)
    group = parser.add_argument_group("wave buffer")
    group.add_argument(
        "--shares",
        type=fractions,
        default="1,2,5,10,20",
        metavar="P[,P...]",
        help="sizes of the block cache whose hits are counted, percent of the store "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--share",
        type=float,
        metavar="P",
        help="size of the block cache that is timed (default: 10; on a GPU 5)",
    )
    group.add_argument(
        "--readers",
        type=int,
        default=2,
        metavar="N",
        help="threads that read ahead (default: %(default)s)",
    )
    group.add_argument(
        "--foresight",
        type=float,
        default=0.9,
        metavar="C",
        help="cosine between a query and the guess that is read ahead for (default: %(default)s)",
    )
    group.add_argument(
        "--folder",
        metavar="DIR",
        help="where the file is made, and removed again (default: the system's temporary folder)",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="R",
        help="timed passes over all steps (default: %(default)s)",
    )
    _device_option(group)
    common_options(group)
    return parser


def buffer_options(arguments: argparse.Namespace) -> BufferOptions:
    """Raises UsageError for what contradicts itself."""
    share = 10.0 if arguments.device == "cpu" else 5.0
    return BufferOptions(
        tokens=arguments.tokens,
        data=None if arguments.data is None else Path(arguments.data),
        steps=arguments.steps,
        shares=arguments.shares,
        share=share if arguments.share is None else arguments.share,
        device=arguments.device,
        readers=arguments.readers,
        foresight=arguments.foresight,
        folder=None if arguments.folder is None else Path(arguments.folder),
        repeats=arguments.repeats,
        threads=arguments.threads,
        seed=arguments.seed,
        **_given_shape(arguments),
    )


def attention_options(arguments: argparse.Namespace) -> AttentionOptions:
    """Raises UsageError for what contradicts itself."""
    return AttentionOptions(
        tokens=arguments.tokens,
        dtype=arguments.dtype,
        store_type=arguments.store_type,
        index_type=arguments.index_type,
        data=None if arguments.data is None else Path(arguments.data),
        steps=arguments.steps,
        repeats=arguments.repeats,
        prompt=arguments.prompt,
        device=arguments.device,
        budget=arguments.budget,
        threads=arguments.threads,
        seed=arguments.seed,
        **_given_shape(arguments),
    )


def speed_options(arguments: argparse.Namespace) -> SpeedOptions:
    """Raises UsageError for what makes no sense."""
    return SpeedOptions(
        model=chosen_model(arguments),
        random_weights=arguments.weights == "random",
        depths=tuple(dict.fromkeys(arguments.n_depth)),
        n_gen=getattr(arguments, "n_gen", ()),
        n_prompt=arguments.n_prompt,
        repetitions=arguments.repetitions,
        caches=arguments.cache,
        in_file=arguments.in_file,
        session=loading_config(
            arguments,
            wave=wave_config(arguments),
            prefill=arguments.prefill,
            batch_size=arguments.batch_size,
        ),
        seed=arguments.seed,
    )


BENCHES = {
    "attention": Measurement(
        summary="a decode step of attention, wave against dense, without a model",
        parser=attention_parser,
        options=attention_options,
        module="retrolocal.bench.attention",
        lines=facts_and_table,
    ),
    "decode": Measurement(
        summary="a whole model that generates, at depths",
        parser=decode_parser,
        options=speed_options,
        module="retrolocal.bench.decode",
        lines=speed_table,
    ),
    "prefill": Measurement(
        summary="a whole model that reads a prompt, at depths",
        parser=prefill_parser,
        options=speed_options,
        module="retrolocal.bench.decode",
        lines=speed_table,
    ),
    "buffer": Measurement(
        summary="decode steps over a file behind a block cache, against RAM",
        parser=buffer_parser,
        options=buffer_options,
        module="retrolocal.bench.buffer",
        lines=facts_and_table,
    ),
    "all": Measurement(
        summary="what says most about a GPU, one after the other",
        parser=all_parser,
        options=all_options,
        module="retrolocal.bench.all",
        lines=facts_and_table,
    ),
    "reopen": Measurement(
        summary="until a document that was read before is answered about",
        parser=reopen_parser,
        options=reopen_options,
        module="retrolocal.bench.reopen",
        lines=facts_and_table,
    ),
    "load": Measurement(
        summary="from the start of the program to its first token, against a plain read",
        parser=load_parser,
        options=load_options,
        module="retrolocal.bench.load",
        lines=load_lines,
    ),
}


def _given_shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of synthetic data; raises UsageError where there is recorded data too."""
    given = {
        name: value
        for name in ("q_heads", "kv_heads", "head_dim", "gain")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.data is not None and given:
        flag = next(iter(given)).replace("_", "-")
        raise UsageError(f"--data and --{flag} were both given; recorded data has its own")
    return given


def _device_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-dev", "--device", default="cpu", metavar="auto|cpu|cuda", help="default: %(default)s"
    )


def _data_options(group: argparse._ArgumentGroup, *, steps: int = 8) -> None:
    def number(name: str, letter: str, default: str, text: str) -> None:
        group.add_argument(name, type=int, metavar=letter, help=f"{text} (default: {default})")

    group.add_argument(
        "--tokens",
        type=int,
        default=131_072,
        metavar="N",
        help="tokens of context (default: %(default)s)",
    )
    number("--q-heads", "H", "28", "query heads, a multiple of the KV heads")
    number("--kv-heads", "K", "4", "heads of keys and values")
    number("--head-dim", "D", "128", "dimensions of a head, an even number")
    group.add_argument(
        "--steps",
        type=int,
        default=steps,
        metavar="S",
        help="decode steps, each with queries of its own (default: %(default)s)",
    )
    group.add_argument(
        "--gain",
        type=float,
        metavar="G",
        help="how sharp attention is: 1 diffuse, 2 middle, 3 sharp (default: 2.0)",
    )
    group.add_argument(
        "--data",
        metavar="FILE",
        help="recorded queries, keys and values (safetensors) in place of synthetic ones",
    )


def _format_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dtype",
        default="bf16",
        choices=("bf16", "f32"),
        help="of queries, and of the keys and values of dense attention (default: %(default)s)",
    )
    group.add_argument(
        "--store-type",
        default=WaveConfig().store_type,
        choices=("bf16", "f32", "int8", "int4"),
        help="of the keys and values that the wave cache stores (default: %(default)s)",
    )
    group.add_argument(
        "--index-type",
        default="int8",
        choices=("int8", "bf16"),
        help="of the centroids in the wave index (default: %(default)s)",
    )
    budget_option(group)


def _speed_options(
    parser: argparse.ArgumentParser, tests: argparse._ArgumentGroup, *, prompt: str
) -> None:
    tests.add_argument(
        "-p",
        "--n-prompt",
        type=numbers,
        default=prompt,
        metavar="N[,N...]",
        help="tokens of a prompt to read; 0: no prompt (default: %(default)s)",
    )
    tests.add_argument(
        "-d",
        "--n-depth",
        type=numbers,
        default="0",
        metavar="N[,N...]",
        help="tokens of context before each test (default: %(default)s)",
    )
    tests.add_argument(
        "-r",
        "--repetitions",
        type=int,
        default=3,
        metavar="N",
        help="how often each test is repeated (default: %(default)s)",
    )
    batch_option(tests)
    model = parser.add_argument_group("model")
    model_options(model)
    model.add_argument(
        "--weights",
        default="checkpoint",
        choices=("checkpoint", "random"),
        help="random: time an architecture; -m then needs nothing but a config.json, which it may "
        "name (default: %(default)s)",
    )
    device_options(model)
    cache = parser.add_argument_group("cache")
    cache.add_argument(
        "--cache",
        type=names,
        default="auto",
        metavar="auto|dense|wave[,...]",
        help="auto: wave at a depth above 0, dense at depth 0 (default)",
    )
    cache.add_argument(
        "--in-file",
        type=float,
        metavar="P",
        help="time wave caches also with their clusters in a file, behind a block cache of P "
        "percent of them",
    )
    wave_options(cache)
    prefill_option(cache)
    common_options(parser.add_argument_group("run"))
