"""The command line of `retrolocal bench reopen`. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import command_parser
from ..measurement import output_options
from ..shared_options import model_options
from .options import ReopenOptions


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
        model="builtin" if arguments.model is None else arguments.model,
        folder=None if arguments.folder is None else Path(arguments.folder),
        repeats=arguments.repeats,
    )
