"""The command line of `retrolocal eval`. No torch: what measures is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..arguments import command_parser, names
from ..errors import UsageError
from ..measurement import (
    Measurement,
    chosen_model,
    common_options,
    facts_and_table,
    output_options,
    run_one_of,
)
from ..shared_options import device_options, loading_config, model_options, threads_option
from .options import AttentionOptions, QuantOptions
from .report import attention_lines

CLOSING = "Attention over a book, wave against dense:  retrolocal eval attention -f book.txt"


def evaluate(arguments: Sequence[str]) -> int:
    """Runs `retrolocal eval ARGUMENTS...`; returns the exit code."""
    return run_one_of("eval", EVALUATIONS, CLOSING, arguments)


def attention_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal eval attention",
        "retrolocal eval attention [-m MODEL] -f FILE [options]",
        "Reads a text with a model and compares, layer by layer, what wave attention answers its "
        "queries with what attention over everything does.",
    )
    group = parser.add_argument_group("model and text")
    model_options(group)
    group.add_argument(
        "-f", "--file", metavar="FILE", help="a document of any kind that chat -f takes; - is stdin"
    )
    group.add_argument(
        "--tokens", type=int, metavar="N", help="tokens of it to read (default: all)"
    )
    device_options(group)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--questions",
        type=int,
        default=16,
        metavar="N",
        help="places of the text whose queries are compared (default: %(default)s)",
    )
    group.add_argument("--plot", metavar="FILE.svg", help="draw the result into this file")
    common_options(group)
    return parser


def attention_options(arguments: argparse.Namespace) -> AttentionOptions:
    """Raises UsageError for what makes no sense."""
    if not arguments.file:
        raise UsageError("--file is missing; give the document to read with -f")
    return AttentionOptions(
        model=chosen_model(arguments),
        file=arguments.file,
        tokens=arguments.tokens,
        questions=arguments.questions,
        plot=None if arguments.plot is None else Path(arguments.plot),
        session=loading_config(arguments),
        seed=arguments.seed,
    )


def quant_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal eval quant",
        "retrolocal eval quant [-m MODEL] [-f FILE] [options]",
        "Reads a text with a model whose weights are quantised, and compares its predictions of "
        "every next token with those of the model as it comes.",
    )
    group = parser.add_argument_group("model and text")
    model_options(group)
    group.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="a document of any kind that chat reads; - is stdin (default: a text that comes with "
        "the program)",
    )
    group.add_argument(
        "--tokens",
        type=int,
        default=512,
        metavar="N",
        help="tokens of it to read at most (default: %(default)s)",
    )
    device_options(group)
    parser.set_defaults(quant="int8,int4", dtype="bfloat16")
    threads_option(group)
    output_options(parser.add_argument_group("run"))
    return parser


def quant_options(arguments: argparse.Namespace) -> QuantOptions:
    """Raises UsageError for what makes no sense."""
    return QuantOptions(
        model=chosen_model(arguments),
        file=arguments.file,
        tokens=arguments.tokens,
        quants=tuple(dict.fromkeys(names(arguments.quant))),
        session=loading_config(
            arguments,
            quant="none",
        ),
    )


EVALUATIONS = {
    "attention": Measurement(
        summary="wave attention against dense attention, on a model and a text",
        parser=attention_parser,
        options=attention_options,
        module="retrolocal.evaluate.attention",
        lines=attention_lines,
    ),
    "quant": Measurement(
        summary="predictions with quantised weights against those without",
        parser=quant_parser,
        options=quant_options,
        module="retrolocal.evaluate.quant",
        lines=facts_and_table,
    ),
}
