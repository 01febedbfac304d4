"""The command lines of what times whole programs, or a GPU as a whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..arguments import command_parser
from ..measurement import chosen_model, common_options, facts_and_table, output_options
from ..shared_options import device_options, loading_config, model_options, threads_option
from .options import AllOptions, LoadOptions, ReopenOptions


def reopen_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench reopen",
        "retrolocal bench reopen -f FILE [-m MODEL] [options]",
        "Reads a document into a library, then times chats about it, each a program of its own, "
        "against one about nothing.",
    )
    group = parser.add_argument_group("model and text")
    model_options(group)
    group.add_argument("-f", "--file", metavar="FILE", required=True, help="a document")
    group.add_argument(
        "-p",
        "--prompt",
        default="In the beginning",
        metavar="TEXT",
        help="what is asked (default: %(default)s)",
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--folder",
        metavar="DIR",
        help="where the library is made, and removed again (default: the system's temporary "
        "folder, which may be memory)",
    )
    group.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="R",
        help="programs of each kind (default: %(default)s)",
    )
    output_options(group)
    return parser


def reopen_options(arguments: argparse.Namespace) -> ReopenOptions:
    """Raises UsageError for what makes no sense."""
    return ReopenOptions(
        file=Path(arguments.file),
        question=arguments.prompt,
        model=chosen_model(arguments),
        folder=None if arguments.folder is None else Path(arguments.folder),
        repeats=arguments.repeats,
    )


def load_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench load",
        "retrolocal bench load [-m MODEL] [options]",
        "Times whole programs from their start to their first token, in turn with a plain read of "
        "the model's weight files, and says where the time goes and what memory it takes.",
    )
    group = parser.add_argument_group("model")
    model_options(group)
    device_options(group)
    threads_option(group)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--cold",
        action="store_true",
        help="drop the weight files from the page cache before every pass",
    )
    group.add_argument(
        "-r",
        "--repeats",
        type=int,
        default=5,
        metavar="R",
        help="passes of each kind (default: %(default)s)",
    )
    output_options(group)
    return parser


def load_options(arguments: argparse.Namespace) -> LoadOptions:
    """Raises UsageError for what makes no sense."""
    return LoadOptions(
        model=chosen_model(arguments),
        cold=arguments.cold,
        repeats=arguments.repeats,
        session=loading_config(arguments),
    )


def load_lines(result: dict[str, Any]) -> list[str]:
    """The result as text: without every single run."""
    return facts_and_table({name: value for name, value in result.items() if name != "samples"})


def all_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "retrolocal bench all",
        "retrolocal bench all [--out DIR] [options]",
        "Runs what says most about a GPU, one after the other, within some minutes: attention, the "
        "scoring kernel, the block cache, prompts, and decode steps of a whole model within a "
        "limit of GPU memory. Each part's result is written to --out as soon as it is there.",
    )
    group = parser.add_argument_group("tests")
    group.add_argument(
        "--tokens",
        type=int,
        default=AllOptions().tokens,
        metavar="N",
        help="tokens of the longest context (default: %(default)s)",
    )
    group.add_argument(
        "--minutes",
        type=float,
        default=AllOptions().minutes,
        metavar="M",
        help="what would begin later is left out (default: %(default)s)",
    )
    group.add_argument(
        "-m",
        "--model",
        default=AllOptions().model,
        metavar="MODEL",
        help="architecture of the whole model, its weights are random: a folder, a config.json or "
        "builtin (default: that of %(default)s)",
    )
    group.add_argument(
        "--vram",
        type=float,
        default=AllOptions().vram,
        metavar="GIB",
        help="GPU memory that the whole model gets (default: %(default)s)",
    )
    group.add_argument(
        "-dev", "--device", default="cuda", metavar="auto|cpu|cuda", help="default: %(default)s"
    )
    common_options(parser.add_argument_group("run"))
    return parser


def all_options(arguments: argparse.Namespace) -> AllOptions:
    """Raises UsageError for what makes no sense."""
    return AllOptions(
        device=arguments.device,
        tokens=arguments.tokens,
        vram=arguments.vram,
        model=arguments.model,
        minutes=arguments.minutes,
        out=None if arguments.out is None else Path(arguments.out),
        threads=arguments.threads,
        seed=arguments.seed,
    )
