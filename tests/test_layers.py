"""Imports point down the layers only (ARCHITECTURE.md), and nothing happens at import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "retrolocal": "retrolocal",
    "kernels": "retrolocal.kernels",
    "models": "retrolocal.models",
    "tui": "retrolocal.tui",
}
LAYERS: list[set[str]] = [
    {"retrolocal", "errors", "config", "paths", "statistics", "arguments", "files", "chats"}
    | {"shared_options", "measurement", "remembered", "thinking"}
    | {"amounts", "pace", "recommended", "report", "relief", "heap", "outcome", "stdout"}
    | {"settings", "settings_command", "template_limits"},
    {"kernels", "token_buffer", "device_ring"},
    {"models", "wave", "cache", "ingest", "library", "hub", "tokenizer", "chat", "sampling"},
    {"generate", "conversation", "context", "memory", "fidelity", "crossover", "caches"}
    | {"kept", "provenance", "reply", "draft", "shelf", "head", "device", "sources", "room"}
    | {"loading", "machine", "model_counts", "planning", "expected_time", "ahead"}
    | {"default_model", "model_commands", "fetching", "device_graph", "fit_check", "choice"}
    | {"kept_bytes"},
    {"session"},
    {"bench", "evaluate", "plan", "doctor"},
    {"tui", "cli", "__main__"},
]
WITHOUT_TORCH = {
    *(
        "retrolocal",
        "errors",
        "config",
        "paths",
        "statistics",
        "arguments",
        "files",
        "chats",
        "outcome",
        "stdout",
        "shared_options",
        "measurement",
        "thinking",
        *("amounts", "pace", "recommended", "report", "default_model", "model_commands"),
        *("fetching", "settings", "settings_command", "template_limits"),
        "plan",
        "doctor",
        "cli",
        "__main__",
    ),
    *("ingest", "hub", "tokenizer", "chat", "conversation", "ahead"),
}


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            yield name, path


MODULES = list(modules())
MODULE_NAMES = [name for name, _ in MODULES]


def unit(module: str) -> str:
    """The row of the layer table that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def layer(name: str) -> int:
    return next(number for number, row in enumerate(LAYERS) if name in row)


def imports(module: str, path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names that a module imports, and whether that happens when it is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        at_import = node not in inside and node not in typing_only
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join((*base, *([node.module] if node.module else []))) if node.level else ""
            name = stem or node.module or ""
            if node.level and not node.module:
                yield from ((f"{name}.{alias.name}", at_import) for alias in node.names)
            else:
                yield name, at_import


@pytest.mark.parametrize(("module", "path"), MODULES, ids=MODULE_NAMES)
def test_imports_point_down(module: str, path: Path) -> None:
    mine = unit(module)
    for name, at_import in imports(module, path):
        if name.partition(".")[0] != "retrolocal" or name in (
            "retrolocal",
            "retrolocal.__version__",
        ):
            continue
        theirs = unit(name)
        if theirs == mine or not at_import:
            continue
        assert layer(theirs) <= layer(mine), f"{module} imports {name} from a layer above"
        same = layer(theirs) == layer(mine)
        assert not same or layer(mine) in (0, 3, 6), f"{module} imports its sibling {name}"


@pytest.mark.parametrize(("module", "path"), MODULES, ids=MODULE_NAMES)
def test_torch_stays_where_it_belongs(module: str, path: Path) -> None:
    names = [name.partition(".")[0] for name, at_import in imports(module, path) if at_import]
    if unit(module) in WITHOUT_TORCH:
        assert "torch" not in names
    if not path.name.endswith("_triton.py"):
        assert "triton" not in names


@pytest.mark.parametrize(("module", "path"), MODULES, ids=MODULE_NAMES)
def test_files_stay_short(module: str, path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 500
