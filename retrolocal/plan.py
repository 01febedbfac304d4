"""`retrolocal plan`: what a model and a text would take here, how long, and what would fit.

Reads config.json, the headers of the weights and the text; of a model that is not on this machine
it fetches the settings, no weights. `--vram` and `--ram` plan for another machine than this one.
Asked of no model and no text it shows the recommended models (`choice`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .amounts import size as amount
from .amounts import size_text
from .arguments import command_parser, parsed, size
from .config import SessionConfig, require_model
from .errors import UsageError
from .report import ticking
from .settings import apply_settings, given_settings
from .shared_options import (
    batch_option,
    device_options,
    extraction,
    extraction_options,
    loading_config,
    model_options,
    ram_bytes,
    threads_option,
    wave_config,
    wave_options,
)

if TYPE_CHECKING:
    import torch

    from .hub import DiskRoom
    from .ingest.document import Document
    from .memory import Limit
    from .models.config import ModelConfig
    from .planning import Plan, Planner

GIB = 1 << 30
MANY_CHARACTERS = 4_000_000
"""Of a text whose tokens take seconds to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the command says."""

    asked: Plan
    best: Plan | None
    """The most faithful setting that fits; None when none does ..."""
    longest: Plan | None
    """... and then the longest text that would."""
    there: Limit
    download: DiskRoom | None
    """None for a model that is on this machine."""

    @property
    def fits(self) -> bool:
        """Also on the disk, where it has to be downloaded first."""
        return self.asked.fits and not (self.download and self.download.lacking)


def plan(words: Sequence[str]) -> int:
    """Runs `retrolocal plan WORDS...`; returns 0 when what was asked for fits, else 1."""
    arguments = parsed(plan_parser(), words, apply_settings)
    if arguments is None:
        return 0
    config = plan_config(arguments)
    if _without_text(arguments):
        from .choice import shown

        print(shown(arguments.ram, arguments.vram, config, as_json=arguments.json))
        return 0
    answer = answered(arguments, config)
    if arguments.json:
        print(json.dumps(facts(answer)))
    else:
        print("\n".join(lines(answer)))
    return 0 if answer.fits else 1


def plan_parser() -> argparse.ArgumentParser:
    """The options of `retrolocal plan`."""
    parser = command_parser(
        "retrolocal plan",
        "retrolocal plan [[-m MODEL] -f FILE... | --tokens N] [options]",
        "Say what a model and a text would take on this machine, in memory and in time, and the "
        "best setting that fits. No weights are loaded or fetched. Exit code 1: it does not fit as "
        "asked. Without a model and a text: which models are worth trying here.",
    )
    group = parser.add_argument_group("model and text")
    model_options(group)
    group.add_argument(
        "-f", "--file", action="append", default=[], metavar="FILE", help="a document to read"
    )
    extraction_options(group)
    group.add_argument("--tokens", type=int, metavar="N", help="a text of so many tokens")
    device_options(group)
    threads_option(group)
    group = parser.add_argument_group("cache")
    group.add_argument(
        "--cache", default="auto", metavar="auto|dense|wave", help="default: %(default)s"
    )
    wave_options(group)
    batch_option(group)
    group = parser.add_argument_group("machine")
    group.set_defaults(usual_ram=None)
    group.add_argument(
        "--ram",
        type=size,
        metavar="SIZE",
        help="memory of the process (default, and 0: what is free)",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def plan_config(arguments: argparse.Namespace) -> SessionConfig:
    """Raises UsageError for what makes no sense."""
    if arguments.tokens is not None and arguments.file:
        raise UsageError("give either the text with -f or its length with --tokens")
    require_model(arguments.model)
    usual = given_settings().get("model")
    if (
        _without_text(arguments)
        and arguments.model
        and (not usual or usual.value != arguments.model)
    ):
        raise UsageError(
            f"a plan for {arguments.model} needs a text: give it with -f, or its length with "
            "--tokens"
        )
    if arguments.tokens is not None and arguments.tokens < 1:
        raise UsageError(f"--tokens is {arguments.tokens}; give at least 1")
    if arguments.vram is not None and (arguments.ram or arguments.device == "cpu"):
        other = "--ram" if arguments.ram else "--device cpu"
        raise UsageError(f"--vram and {other} were both given; a model lies in one of the two")
    return loading_config(
        arguments,
        cache=arguments.cache,
        wave=wave_config(arguments),
        batch_size=arguments.batch_size,
    )


def _without_text(arguments: argparse.Namespace) -> bool:
    return arguments.tokens is None and not arguments.file


def answered(arguments: argparse.Namespace, config: SessionConfig) -> Answer:
    """Raises what finding the model and reading the text raises, and ContextError."""
    import torch

    from .default_model import default_model
    from .device import gpu_bytes
    from .errors import ContextError
    from .fetching import check_usable
    from .fit_check import declared, head_of
    from .hub import disk_room, fetch_settings, locate_model, retries_told
    from .models.checkpoint import INDEX, SINGLE
    from .models.config import read_config
    from .models.weights import checkpoint_dtype

    if config.threads:
        torch.set_num_threads(config.threads)
    name = arguments.model or default_model(gpu_bytes=gpu_bytes(config)).model
    with retries_told(_tell):
        found = locate_model(name, revision=config.revision, offline=config.offline)
        folder = found if isinstance(found, Path) else fetch_settings(found)
    if folder is not found:
        ram = 0 if config.device == "cuda" else ram_bytes(arguments)
        check_usable(folder, replace(config, ram=ram))
    model = read_config(folder)
    tokens = arguments.tokens
    if tokens is None:
        documents = _documents(arguments)
        characters = sum(len(document.text) for document in documents)
        counting = f"counting the tokens of {characters:,} characters"
        if characters >= MANY_CHARACTERS and not sys.stderr.isatty():
            _tell(counting)
        with ticking(counting):
            tokens = len(head_of(folder, documents).ids)
    if tokens > model.max_positions:
        raise ContextError(
            f"the text has {tokens:,} tokens and {name} has positions for "
            f"{model.max_positions:,}: give a shorter text or a model with a longer context"
        )
    # A folder with nothing but config.json can be planned for, too.
    known = folder is found and ((folder / SINGLE).exists() or (folder / INDEX).exists())
    stored = checkpoint_dtype(folder, model) if known else declared(folder)
    planner, there = _planner(name, model, config, stored, arguments)
    asked = planner.plan(tokens)
    best = planner.best(tokens)
    longest = planner.longest() if best is None else None
    download = None if isinstance(found, Path) else disk_room(found)
    return Answer(asked=asked, best=best, longest=longest, there=there, download=download)


def facts(answer: Answer) -> dict[str, Any]:
    """The answer as JSON."""
    room = answer.download
    return answer.asked.facts() | {
        "fits": answer.fits,
        "download_bytes": 0 if room is None else room.needed,
        "download_free_bytes": None if room is None else room.free,
        "best": None if answer.best is None else answer.best.facts(),
        "longest": None if answer.longest is None else answer.longest.facts(),
    }


def lines(answer: Answer) -> list[str]:
    """The answer as text."""
    asked = answer.asked
    words = [
        f"{asked.model}, {asked.tokens:,} tokens on {asked.device}, {asked.options}, "
        f"cache {asked.cache_kind}",
        "",
    ]
    for name, size_in_bytes, what in (
        ("program", asked.program, "Python, PyTorch, compiled kernels"),
        ("weights", asked.weights, asked.quant if asked.quant != "none" else "as they come"),
        ("index", asked.index, "centroids and value sums of the clusters"),
        ("store", asked.store, f"keys and values, {asked.store_type}{_place(asked)}"),
        ("cache", asked.cache, "keys and values in token order, block cache"),
        ("workspace", asked.workspace, "while the text is read or sources are found"),
    ):
        words.append(f"  {name:<14}{size_text(size_in_bytes, 2):>12}   {what}")
    loading, reading, there = answer.there.beside(asked.loading_peak, asked.prefill_peak, digits=2)
    words += [
        f"  {'peak, loading':<14}{loading:>12}",
        f"  {'peak, reading':<14}{reading:>12}   of {there}",
    ]
    room = answer.download
    if room is not None:
        into = f"into {room.folder}, {amount(room.free)} free"
        words.append(f"  {'download':<14}{amount(room.needed):>12}   {into}")
    if asked.prefill_seconds is not None and asked.decode_seconds is not None:
        words.append(
            f"  {'time':<14}about {_duration(asked.prefill_seconds)} to read the text, then "
            f"{1 / asked.decode_seconds:.1f} tokens a second"
        )
    return [*words, "", _verdict(answer)]


def _place(asked: Plan) -> str:
    return f", in {asked.store_in}" if asked.fits else ""


def _verdict(answer: Answer) -> str:
    asked, best, room = answer.asked, answer.best, answer.download
    if room is not None and room.lacking:
        return (
            f"It does not fit on the disk of {room.folder}; make room for {amount(room.lacking)} "
            "more, or set HF_HOME to another disk."
        )
    if asked.store_in == "memory":
        return "It fits."
    kept = "It fits with its keys and values in a file" if asked.fits else "It does not fit"
    if best is not None and best.options != asked.options:
        where = ", keys and values in a file" if best.store_in == "file" else ""
        takes, _ = answer.there.beside(best.total, digits=2)
        return f"{kept}; {best.options} takes {takes}{where}."
    if best is None and answer.longest is not None:
        longest = answer.longest
        return f"{kept}; at most {longest.tokens:,} tokens do, with {longest.options}."
    if best is None:
        return f"{kept}, nor does anything of this model; take a smaller one."
    return f"{kept}."


def _planner(
    name: str,
    model: ModelConfig,
    config: SessionConfig,
    stored: torch.dtype,
    arguments: argparse.Namespace,
) -> tuple[Planner, Limit]:
    import torch

    from .device import choose_device, choose_dtype
    from .machine import machine
    from .memory import Limit, limit, program_bytes
    from .planning import Planner, gpu_limit

    device = torch.device("cuda") if arguments.vram is not None else choose_device(config)
    dtype = choose_dtype(config, stored, device)
    # Measuring, below, compiles what the index needs: no later run has to.
    program = program_bytes("dense")
    if arguments.vram is not None:
        there = Limit(int(arguments.vram * GIB), "{} of --vram")
    elif device.type == "cuda":
        there = gpu_limit(device)
    else:
        # What is usual here bounds this machine; what is asked for may be another one's.
        there = limit(ram_bytes(arguments), program)
        if arguments.ram:
            there = Limit(arguments.ram, "{} of --ram")
    here = arguments.vram is None or torch.cuda.is_available()
    planner = Planner(
        name,
        model,
        config,
        dtype,
        device.type,
        there=there,
        program=0 if device.type == "cuda" else program,
        rates=machine(device, dtype, _tell) if here else None,
    )
    return planner, there


def _documents(arguments: argparse.Namespace) -> list[Document]:
    from .ingest import given_once, read_document
    from .ingest.source import printable

    options = asdict(extraction(arguments))
    documents = []
    for file in given_once(arguments.file, _tell):
        with ticking(f"reading {printable(file)}"):
            documents.append(read_document(file, **options))
    return documents


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
