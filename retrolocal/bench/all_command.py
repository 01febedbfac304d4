"""The command line of `retrolocal bench all`. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import command_parser
from ..measurement import common_options
from .options import AllOptions


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
