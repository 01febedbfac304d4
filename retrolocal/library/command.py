"""`retrolocal library ...`: what has been read, checked, removed. Loads no torch."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..amounts import size_text
from ..arguments import Parser, command_parser, parsed
from ..errors import LibraryError, UsageError
from ..measurement import facts_and_table, table

if TYPE_CHECKING:
    from .library import Library
    from .manifest import Manifest

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of the group."""

    summary: str
    description: str
    run: Callable[[Library, argparse.Namespace], Facts]
    """What it found, as JSON; raises RetrolocalError."""
    lines: Callable[[Facts], list[str]]
    """The same as text."""
    takes_name: bool = False
    failed: Callable[[Facts], bool] = lambda facts: False
    """Whether the exit code is 1 although there is something to show."""


def library(words: Sequence[str]) -> int:
    """Runs `retrolocal library WORDS...` and returns the exit code; raises RetrolocalError."""
    if words and words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        problem = f"has no command {words[0]!r}" if words else "needs a command"
        raise UsageError(
            f"retrolocal library {problem}; give {', '.join(COMMANDS)} (see retrolocal library "
            "--help)"
        )
    arguments = _arguments(words[0], command, list(words[1:]))
    if arguments is None:
        return 0
    from .library import Library

    facts = command.run(Library(), arguments)
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        for line in command.lines(facts):
            print(line)
    return 1 if command.failed(facts) else 0


def parser_of(name: str) -> Parser:
    """The options of one command."""
    command = COMMANDS[name]
    parser = command_parser(
        f"retrolocal library {name}",
        f"retrolocal library {name}{' NAME' if command.takes_name else ''} [options]",
        command.description,
    )
    if name == "verify":
        parser.add_argument(
            "--deep", action="store_true", help="read every byte, not headers and texts alone"
        )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _arguments(name: str, command: Command, words: list[str]) -> argparse.Namespace | None:
    plain = [word for word in words if not word.startswith("-")]
    arguments = parsed(parser_of(name), [word for word in words if word.startswith("-")])
    if arguments is None:
        return None
    if not command.takes_name:
        if plain:
            raise UsageError(f"retrolocal library {name} takes no name, and {plain[0]!r} was given")
        return arguments
    if len(plain) != 1:
        given = f"{len(plain)} were given" if plain else "none was given"
        raise UsageError(
            f"retrolocal library {name} takes one name or key, and {given}; see retrolocal library "
            "list"
        )
    arguments.name = plain[0]
    return arguments


def _list(library: Library, arguments: argparse.Namespace) -> Facts:
    catalogue, written = library.catalogue(), library.written_now()
    from .apart import namesakes_apart

    unlike = namesakes_apart(catalogue.current)
    entries = [
        {**_entry(library, manifest, written), "unlike": unlike[manifest.key]}
        for manifest in catalogue.current
    ]
    entries.sort(key=lambda entry: (-entry["last_used"], entry["key"]))
    return {
        "path": str(library.path),
        "entries": entries,
        "problems": [str(problem.error) for problem in catalogue.problems],
    }


def _list_lines(facts: Facts) -> list[str]:
    if not facts["entries"] and not facts["problems"]:
        return ["The library is empty. Read a document into it: retrolocal ingest FILE"]
    told = any(entry["unlike"] for entry in facts["entries"])
    models = any(entry["model"] for entry in facts["entries"])
    several = any(entry["documents"] > 1 for entry in facts["entries"])
    rows = [
        (
            entry["name"],
            entry["kind"],
            _STATES[entry["state"]],
            *([entry["unlike"]] if told else []),
            *([_short(entry["model"])] if models else []),
            *([f"{entry['documents']:,}"] if several else []),
            f"{entry['tokens']:,}",
            size_text(entry["bytes"]),
            _moment(entry["last_used"]),
            entry["key"][:12],
        )
        for entry in facts["entries"]
    ]
    left = (
        *("name", "kind", "state"),
        *(["unlike others of its name"] if told else []),
        *(["model"] if models else []),
    )
    names = (*left, *(["files"] if several else []), "tokens", "size", "last used", "key")
    return [*(table(names, rows, left=len(left)) if rows else []), *facts["problems"]]


def _show(library: Library, arguments: argparse.Namespace) -> Facts:
    manifest = library.find(arguments.name)
    documents = [
        {
            "name": document.name,
            "characters": document.characters,
            "extractor": document.extractor,
            "digest": document.digest,
        }
        for document in manifest.documents
    ]
    return {
        **_entry(library, manifest, library.written_now()),
        "identity": manifest.identity.facts(),
        "facts": manifest.facts,
        "documents": documents,
    }


def _show_lines(facts: Facts) -> list[str]:
    times = {name: _moment(facts[name]) for name in ("created", "last_used")}
    documents = [
        {name: value for name, value in document.items() if name != "digest"}
        for document in facts["documents"]
    ]
    apart = ("documents", "facts", "identity", "bytes")
    shown = {k: v for k, v in facts.items() if k not in apart}
    others = {name: value for name, value in facts["facts"].items() if name != "model"}
    shown |= {"size": size_text(facts["bytes"]), **times, **others}
    return [
        *facts_and_table({**shown, "results": documents}),
        "",
        "what it was read with:",
        *facts_and_table(facts["identity"]),
    ]


def _verify(library: Library, arguments: argparse.Namespace) -> Facts:
    verified = library.verify(arguments.name, deep=arguments.deep)
    return {
        "name": arguments.name,
        "deep": arguments.deep,
        "files": verified.files,
        "bytes": verified.bytes,
        "problems": list(verified.problems),
    }


def _verify_lines(facts: Facts) -> list[str]:
    if facts["problems"]:
        return list(facts["problems"])
    what = "every byte is" if facts["deep"] else "headers and texts are"
    of = f"{facts['files']} files, {size_text(facts['bytes'])}"
    return [f"{facts['name']}: {of}: {what} as written"]


def _remove(library: Library, arguments: argparse.Namespace) -> Facts:
    cleaned = library.remove(arguments.name)
    return {"removed": arguments.name, **_cleaned(cleaned)}


def _collect(library: Library, arguments: argparse.Namespace) -> Facts:
    cleaned = library.collect()
    if cleaned.blocked:
        raise LibraryError(f"nothing was removed: {cleaned.blocked}")
    return _cleaned(cleaned)


def _cleaned(cleaned: Any) -> Facts:
    return {
        "files": cleaned.files,
        "bytes": cleaned.bytes,
        "in_use": cleaned.in_use,
        "blocked": cleaned.blocked,
    }


def _cleaned_lines(facts: Facts) -> list[str]:
    done = f"{facts['removed']}: removed; " if "removed" in facts else ""
    lines = [f"{done}{facts['files']} files deleted, {size_text(facts['bytes'])} freed"]
    if facts["in_use"]:
        lines.append(f"{facts['in_use']} files are still open in a chat; run gc after it has ended")
    if facts["blocked"]:
        lines.append(f"no space was freed: {facts['blocked']}")
    return lines


def _path(library: Library, arguments: argparse.Namespace) -> Facts:
    return {"path": str(library.path)}


_STATES = {"complete": "complete", "running": "being read", "unfinished": "unfinished"}
"""What `list` calls the state of an entry: unfinished, it is continued by reading it again."""


def _entry(library: Library, manifest: Manifest, written: str | None) -> Facts:
    """`written` is the key of the entry that some process is writing."""
    unfinished = manifest.state == "running" and manifest.key != written
    return {
        "name": manifest.name,
        "key": manifest.key,
        "kind": manifest.kind,
        "state": "unfinished" if unfinished else manifest.state,
        "tokens": manifest.tokens,
        "segments": len(manifest.segments),
        "documents": len(manifest.documents),
        "bytes": manifest.bytes,
        "model": manifest.model,
        "created": manifest.created,
        "last_used": library.used_at(manifest),
    }


def _short(model: str | None) -> str:
    """Of a folder its name; nothing where an entry does not say."""
    return "" if model is None else Path(model).name if os.path.isabs(model) else model


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _usage() -> str:
    lines = [f"  {name:7}{one.summary}" for name, one in COMMANDS.items()]
    return "\n".join(
        (
            "usage: retrolocal library COMMAND [NAME] [options]",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help  show this help, or that of a command",
            "",
            "NAME is what list shows: a name, or the first 8 digits of a key, or more.",
        )
    )


COMMANDS = {
    "list": Command(
        summary="what has been read",
        description="Lists the documents and corpora of the library, the last used first.",
        run=_list,
        lines=_list_lines,
        failed=lambda facts: bool(facts["problems"]),
    ),
    "show": Command(
        summary="one entry: its files, its size, what it was read with",
        description="Shows one entry of the library.",
        run=_show,
        lines=_show_lines,
        takes_name=True,
    ),
    "verify": Command(
        summary="check that an entry is what was written",
        description="Checks an entry: its manifest, the headers of its segments, its texts. The "
        "exit code is 1 if anything is damaged or missing.",
        run=_verify,
        lines=_verify_lines,
        takes_name=True,
        failed=lambda facts: bool(facts["problems"]),
    ),
    "rm": Command(
        summary="remove an entry and what only it needs",
        description="Removes an entry. What it shares with others stays; an entry that is open in "
        "a chat is not removed. This is no secure erasure.",
        run=_remove,
        lines=_cleaned_lines,
        takes_name=True,
    ),
    "gc": Command(
        summary="delete files that no entry needs any more",
        description="Deletes files that no entry needs any more, such as what an interrupted "
        "ingest left behind. What is open in a chat stays.",
        run=_collect,
        lines=_cleaned_lines,
    ),
    "path": Command(
        summary="the folder of the library",
        description="Prints the folder of the library: $RETROLOCAL_LIBRARY, or else one in the "
        "user's data directory.",
        run=_path,
        lines=lambda facts: [facts["path"]],
    ),
}
