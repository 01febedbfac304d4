"""`retrolocal doctor`: is everything here that the program needs, line by line, and what to do.

A line is ok, a note (works, but slower or with less) or a problem (does not work); with a problem
the exit code is 1. Nothing is loaded, changed or downloaded. The terminal is judged from the
environment alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import __version__
from .arguments import command_parser, parsed

if TYPE_CHECKING:
    from .hub.cache import CachedModel

State = Literal["ok", "note", "problem"]
GIB = 1 << 30
PYTHON = (3, 11)
TORCH = (2, 11)
TRITON = (3, 6)
LEAST_MEMORY = 2 * GIB
LEAST_DISK = 5 * GIB
HUB_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty when all is well."""


def doctor(words: Sequence[str]) -> int:
    """Runs `retrolocal doctor WORDS...`; returns 1 when something does not work."""
    arguments = parsed(doctor_parser(), words)
    if arguments is None:
        return 0
    lines = list(examined(offline=arguments.offline, deep=arguments.deep))
    well = all(line.state != "problem" for line in lines)
    if arguments.json:
        print(json.dumps({"ok": well, "lines": [asdict(line) for line in lines]}))
    else:
        print("\n".join(map(shown, lines)))
    return 0 if well else 1


def doctor_parser() -> argparse.ArgumentParser:
    """The options of `retrolocal doctor`."""
    parser = command_parser(
        "retrolocal doctor",
        "retrolocal doctor [--deep] [--offline] [--json]",
        "Look at Python, PyTorch, the GPU, memory, the configuration, disks, the Hub and the "
        "terminal, and say what to do where something is amiss. Exit code 1: something does "
        "not work.",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also read every byte of the models in the cache, against the SHA-256 they came with",
    )
    parser.add_argument("--offline", action="store_true", help="do not try to reach the Hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def examined(*, offline: bool, deep: bool = False) -> Iterator[Line]:
    """Everything that is looked at, one line at a time; a check that fails is a line, too.

    `deep`: also all bytes of the models in the Hub's cache.
    """
    checks: tuple[Callable[[], Line], ...] = (
        _python,
        _torch,
        _cpu,
        _gpu,
        _triton,
        _memory,
        _builtin,
        _config,
        _caches,
        _library,
        _state,
        lambda: _hub(offline),
        _terminal,
    )
    for check in checks:
        yield check()
    if deep:
        yield from _models()


def shown(line: Line) -> str:
    """A line as text."""
    words = f"{line.name:<10} {line.state:<8} {line.found}"
    return f"{words}: {line.advice}" if line.advice else words


def _python() -> Line:
    found = f"{platform.python_version()} in {sys.prefix}, retrolocal {__version__}"
    if sys.version_info[:2] < PYTHON:
        return Line("python", "problem", found, f"install Python {_dotted(PYTHON)} or newer")
    return Line("python", "ok", found)


def _torch() -> Line:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Line("torch", "problem", " ".join(str(error).split())[:160], "run install.sh again")
    found = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if _numbers(torch.__version__) < TORCH:
        advice = f"pip install 'torch>={_dotted(TORCH)}'"
        return Line("torch", "problem", found, advice)
    return Line("torch", "ok", found)


def _cpu() -> Line:
    import torch

    from .kernels.quantised import has_kernel
    from .machine import processor

    name = processor(torch.device("cpu"))
    found = f"{name}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors"
    if not has_kernel():
        return Line(
            "cpu", "note", found, "--quant saves memory but no time here: no kernel for 4 bits"
        )
    return Line("cpu", "ok", found)


def _gpu() -> Line:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found = (
            f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        )
        return Line("gpu", "ok", found)
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists() or shutil.which("nvidia-smi"):
        built = torch.version.cuda
        why = "PyTorch is built for CPUs" if built is None else f"PyTorch cannot use CUDA {built}"
        return Line(
            "gpu", "problem", f"an NVIDIA driver is here but {why}", "run install.sh --device cuda"
        )
    return Line("gpu", "ok", "none; everything runs on the CPU")


def _triton() -> Line:
    if sys.platform != "linux":
        return Line("triton", "ok", "not needed here")
    try:
        found = version("triton")
    except PackageNotFoundError:
        return Line(
            "triton", "note", "not installed", f"for a GPU: pip install 'triton>={_dotted(TRITON)}'"
        )
    if _numbers(found) < TRITON:
        return Line("triton", "note", found, f"pip install 'triton>={_dotted(TRITON)}'")
    return Line("triton", "ok", found)


def _memory() -> Line:
    import psutil

    from .memory import available_bytes

    free, total = available_bytes(), psutil.virtual_memory().total
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < LEAST_MEMORY:
        return Line("memory", "note", found, "close other programs; only tiny models fit")
    return Line("memory", "ok", found)


def _builtin() -> Line:
    from .paths import builtin_model

    folder = builtin_model()
    if not (folder / "model.safetensors").is_file():
        return Line("builtin", "problem", f"no model in {folder}", "reinstall retrolocal")
    return Line("builtin", "ok", f"{folder}")


def _config() -> Line:
    from .settings import config_file, examined_settings

    file = config_file()
    _, problems = examined_settings()
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        advice = "correct that: most commands refuse to run (retrolocal config tells all)"
        return Line("config", "problem", f"{problems[0]}{others}", advice)
    return Line("config", "ok", f"{file}{'' if file.exists() else ' (not there)'}")


def _caches() -> Line:
    from .paths import cache_dir

    return _folder("cache", cache_dir(), "kernels are compiled and weights quantised at each start")


def _library() -> Line:
    from .errors import RetrolocalError, SettingsError, UsageError
    from .library import Library
    from .paths import library_dir

    otherwise = "nothing that is read can be kept"
    try:
        folder = library_dir()
    except (SettingsError, UsageError):
        return Line("library", "note", "not looked at", "correct the configuration first")
    try:
        Library(folder).catalogue()
    except RetrolocalError as error:
        return Line("library", "problem", str(error), otherwise)
    return _folder("library", folder, otherwise)


def _state() -> Line:
    from .paths import state_dir

    return _folder("state", state_dir(), "neither chats nor a log are kept")


def _folder(name: str, folder: Path, otherwise: str) -> Line:
    from .paths import disk_free

    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = disk_free(folder)
    found = f"{folder}, {free / GIB:.1f} GiB free"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        mend = f"make {there} writable" if there.is_dir() else f"{there} is no folder, give another"
        advice = f"{mend}, or {otherwise}"
        return Line(name, "problem", f"{folder} cannot be written", advice)
    if free < LEAST_DISK:
        return Line(name, "note", found, "free the disk: long texts need several GiB")
    return Line(name, "ok", found)


def _hub(offline: bool) -> Line:
    from .errors import UsageError
    from .hub.variables import require_library, require_network

    try:
        require_library()
        from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE

        if offline or HF_HUB_OFFLINE:
            return Line("hub", "ok", f"offline as asked; models are in {HF_HUB_CACHE}")
        require_network()
    except UsageError as error:
        return Line("hub", "problem", str(error), "-m with a folder or builtin works")
    request = urllib.request.Request(ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return Line("hub", "ok", f"{ENDPOINT} answers; models are in {HF_HUB_CACHE}")
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return Line("hub", "ok", f"{ENDPOINT} answers; models are in {HF_HUB_CACHE}")
        found = f"{ENDPOINT} answers {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        found = f"{ENDPOINT} cannot be reached ({' '.join(str(reason).split())[:120]})"
    return Line("hub", "note", found, "models on this machine work; connect to fetch others")


def _models() -> Iterator[Line]:
    from .errors import RetrolocalError
    from .hub.cache import contents

    try:
        models = contents().models
    except RetrolocalError as error:
        yield Line("models", "problem", str(error), "models of the Hub cannot be used")
        return
    if not models:
        yield Line("models", "ok", "none in the cache of the Hub")
    for model in models:
        yield _model(model)


def _model(model: CachedModel) -> Line:
    from .errors import ModelError
    from .hub.cache import changed_files

    name = f"{model.model}@{model.commit[:8]}"
    mend = f"retrolocal rm {model.model}@{model.commit}, then pull it again"
    try:
        changed = changed_files(model)
    except ModelError as error:
        return Line("model", "problem", f"{name}: {error}", mend)
    if changed:
        return Line("model", "problem", f"{name}: {', '.join(changed)}: not as downloaded", mend)
    return Line("model", "ok", f"{name}: every large file is as it was downloaded")


def _terminal() -> Line:
    name = os.environ.get("TERM", "")
    if not sys.stdout.isatty():
        return Line("terminal", "ok", "output goes to no terminal; chat is plain text then")
    size = shutil.get_terminal_size()
    colours = "24-bit colours" if os.environ.get("COLORTERM") in ("truecolor", "24bit") else name
    found = f"{name or 'unknown'}, {size.columns} x {size.lines}, {colours}"
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if name in ("", "dumb"):
        return Line("terminal", "note", found, "chat is line by line; set TERM, xterm-256color say")
    if encoding != "utf8":
        return Line("terminal", "note", found, "set a UTF-8 locale, LANG=C.UTF-8 say")
    if size.columns < 40 or size.lines < 10:
        return Line("terminal", "note", found, "enlarge the window to 40 x 10 or more")
    return Line("terminal", "ok", found)


def _numbers(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    parts = text.partition("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
