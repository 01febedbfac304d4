"""`retrolocal pull | list | show | rm`: models in the Hugging Face cache. Loads no torch."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .amounts import size
from .arguments import Parser, command_parser, parsed
from .errors import ModelError, UsageError
from .measurement import facts_and_table, table
from .report import Report
from .settings import apply_settings

if TYPE_CHECKING:
    from .hub.cache import CachedModel

Facts = dict[str, Any]
READY, INCOMPLETE, UNUSABLE = "ready", "incomplete", "unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    summary: str
    description: str
    run: Callable[[argparse.Namespace], int]
    takes_name: bool = True


def parser_of(name: str) -> Parser:
    """The options of one command."""
    command = COMMANDS[name]
    usage = f"retrolocal {name}{' MODEL' if command.takes_name else ''} [options]"
    parser = command_parser(f"retrolocal {name}", usage, command.description)
    if command.takes_name:
        what = "org/name[@revision] on the Hub"
        if name == "show":
            what = "a folder, org/name[@revision] in the cache, or builtin"
        parser.add_argument("model", metavar="MODEL", help=what)
        parser.add_argument("--revision", help="branch, tag or commit")
    if name == "pull":
        parser.add_argument(
            "--offline", action="store_true", help="never use the network: is it here?"
        )
        parser.add_argument(
            "-q", "--quiet", action="store_true", help="nothing on stderr but errors"
        )
    objects = "one JSON object per line" if name == "pull" else "one JSON object"
    parser.add_argument("--json", action="store_true", help=f"print {objects}")
    return parser


def run(name: str, words: Sequence[str]) -> int:
    """Runs `retrolocal NAME WORDS...` and returns the exit code; raises RetrolocalError."""
    arguments = parsed(parser_of(name), words, apply_settings)
    if arguments is None:
        return 0
    if COMMANDS[name].takes_name and not arguments.model.strip():
        raise UsageError(f"MODEL is empty; see retrolocal {name} --help")
    return COMMANDS[name].run(arguments)


def _pull(arguments: argparse.Namespace) -> int:
    from .fetching import fetch_told
    from .hub import ask, cached, hub_name, is_offline, retries_told, shadow_note
    from .hub.refusals import offline_error

    report = Report(as_json=arguments.json, quiet=arguments.quiet)
    name = hub_name(arguments.model, arguments.revision)
    if arguments.offline or is_offline():
        folder = cached(name)
        if folder is None:
            raise offline_error(name)
        facts = {"event": "done", "model": str(name), "folder": str(folder), "downloaded_bytes": 0}
        report.say(facts, f"{name} is here; the Hub was not asked for a newer version")
        return 0
    with retries_told(report.remark):
        download = ask(name)
    fetch_told(download, report)
    note = shadow_note(name.model)
    if note is not None:
        report.remark(note)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from .default_model import fitting
    from .hub.cache import contents

    found = contents()
    models = [_entry(one) for one in found.models]
    facts: Facts = {"path": str(found.folder), "models": models, "problems": list(found.problems)}
    rows = [
        (
            one["model"],
            ", ".join(one["revisions"]) or one["commit"][:12],
            size(one["bytes"]),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one["last_used"])),
            one["state"] if one["problem"] is None else f"{one['state']}: {one['problem']}",
        )
        for one in models
    ]
    lines = table(("model", "revision", "size", "last used", "state"), rows, left=2)
    if not models:
        lines = ["No model is in the cache; -m builtin needs none."]
        fits = [one for one in fitting() if not one.gated]
        if fits:
            lines[0] += f" One for this machine: retrolocal pull {fits[0].model}"
    _show_facts(arguments, facts, [*lines, *facts["problems"]])
    return 0


def _entry(one: Any) -> Facts:
    state, problem = _state(one.folder)
    return {
        "model": one.model,
        "revisions": list(one.revisions),
        "commit": one.commit,
        "bytes": one.bytes,
        "last_used": round(one.last_used),
        "folder": str(one.folder),
        "state": state,
        "problem": problem,
    }


def _state(folder: Path) -> tuple[str, str | None]:
    """Whether the model in a folder can be used, and why not."""
    from .hub.cache import missing_file
    from .models.config import read_config

    lacking = missing_file(folder)
    if lacking is not None:
        return INCOMPLETE, f"lacks {lacking}"
    try:
        read_config(folder)
    except ModelError as error:
        return UNUSABLE, str(error).removeprefix(f"{folder}/")
    return READY, None


def _show(arguments: argparse.Namespace) -> int:
    from .hub import cached, hub_name, local_folder

    folder = local_folder(arguments.model)
    if folder is None:
        name = hub_name(arguments.model, arguments.revision)
        folder = cached(name)
        if folder is None:
            raise ModelError(
                f"{name} is not (completely) on this machine; fetch it: retrolocal pull {name}"
            )
    facts = {"model": arguments.model, "folder": str(folder), **_facts(folder)}
    shown = dict(facts)
    shown |= {name: size(facts[name]) for name in ("bytes", "kv_bytes_per_token")}
    shown["chat_template"] = "yes" if facts["chat_template"] else "no"
    _show_facts(arguments, facts, facts_and_table(shown))
    return 0


def _facts(folder: Path) -> Facts:
    from .chat import ChatTemplate
    from .models.checkpoint import read_checkpoint
    from .models.config import read_config
    from .recommended import kv_bytes

    config = read_config(folder)
    tensors = read_checkpoint(folder).values()
    growing = sum(layer.window is None for layer in config.layers)
    dtypes = {tensor.dtype: 0 for tensor in tensors}
    for tensor in tensors:
        dtypes[tensor.dtype] += tensor.bytes
    return {
        "family": config.family,
        "bytes": sum(tensor.bytes for tensor in tensors),
        "dtype": max(dtypes, key=lambda name: dtypes[name]),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "vocabulary": config.vocab_size,
        "layers": len(config.layers),
        "layers_with_all_tokens": growing,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_tokens": config.max_positions,
        "kv_bytes_per_token": kv_bytes(growing, config.kv_heads, config.head_dim),
        "chat_template": ChatTemplate.open(folder, _NoTokens()) is not None,
    }


@dataclass(frozen=True)
class _NoTokens:
    special_tokens: dict[str, str] = field(default_factory=dict)


def _remove(arguments: argparse.Namespace) -> int:
    from .hub import hub_name
    from .hub.cache import matching, remove

    name = hub_name(arguments.model, arguments.revision)
    copies = _quantised_copies(matching(name))
    commits, freed = remove(name)
    # Another revision may have the same weights.
    copies -= _quantised_copies(matching(replace(name, revision=None)))
    quantised = sum(_unlinked(copy) for copy in copies)
    facts = {
        "removed": str(name),
        "commits": list(commits),
        "bytes": freed + quantised,
        "quantised_bytes": quantised,
    }
    line = f"{name}: removed, {size(freed + quantised)} freed"
    line += f", {size(quantised)} of it quantised copies" if quantised else ""
    _show_facts(arguments, facts, [line])
    return 0


def _quantised_copies(snapshots: Sequence[CachedModel]) -> set[Path]:
    """What is kept in the cache directory of the weights of these."""
    from .paths import quantised_dir

    folder, found = quantised_dir(), set()
    if not folder.is_dir() or not any(folder.iterdir()):
        return set()
    from .loading import quantised_copies

    for one in snapshots:
        # Of weights that cannot be read nothing can have been quantised lately.
        with suppress(ModelError):
            found |= quantised_copies(one.folder)
    return found


def _unlinked(file: Path) -> int:
    """Bytes that are free now; one that is removed already, by whomever, frees none."""
    try:
        freed = file.stat().st_size
        file.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise ModelError(f"{file} cannot be removed ({error.strerror}); remove it") from error
    return freed


def _show_facts(arguments: argparse.Namespace, facts: Facts, lines: Sequence[str]) -> None:
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for line in lines:
        print(line)


COMMANDS = {
    "pull": Command(
        summary="fetch a model from the Hugging Face Hub, or its newest version",
        description="Fetches what this program needs of a model (safetensors, tokenizer, "
        "configuration, chat template) into the Hugging Face cache, which other programs share. "
        "Interrupted, it goes on with the file it was at. Private and gated models need a token: "
        "$HF_TOKEN, or `hf auth login`. $HF_ENDPOINT names a mirror.",
        run=_pull,
    ),
    "list": Command(
        summary="models in the Hugging Face cache",
        description="Lists the models in the Hugging Face cache, those used last first, and "
        "whether this program can use them.",
        run=_list,
        takes_name=False,
    ),
    "show": Command(
        summary="one model: its shape, its size, bytes per token",
        description="Shows what a model on this machine is made of, and what a token of text "
        "takes.",
        run=_show,
    ),
    "rm": Command(
        summary="remove a model from the Hugging Face cache",
        description="Removes a model, or one revision of it, from the Hugging Face cache. Other "
        "programs that use it fetch it anew. Files that other revisions need stay. Copies of its "
        "weights that --quant made go, too.",
        run=_remove,
    ),
}
