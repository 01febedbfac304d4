"""The name of a model to a folder on this machine.

A folder is itself, `builtin` is the model that comes with the program, anything else is an id on
the Hugging Face Hub, kept in the cache that all programs of that library share. A model that is in
the cache needs no network. Only data is fetched: safetensors, JSON and templates, never pickles or
code; a file counts only when it is complete and is what the Hub lists.

    name -> local_folder | HubName -> cached | ask -> Download -> fetch

huggingface_hub is imported inside functions: it takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .cache import cache_folder, cached, is_offline
from .download import ask, fetch
from .name import HubName, hub_name, local_folder, shadow_note
from .refusals import offline_error

__all__ = [
    "HubName",
    "ask",
    "cache_folder",
    "cached",
    "fetch",
    "hub_name",
    "local_folder",
    "missing_bytes",
    "resolve_model",
    "shadow_note",
]


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    received: Callable[[int, int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """The folder of the model `name`: `builtin`, a folder, or `org/name[@revision]` on the Hub.

    With `offline` nothing is fetched. `progress` receives a line when the Hub is asked, `received`
    the bytes so far and in all; `check` is called with the folder before weights are fetched.
    What they raise ends the download. Raises ModelError, among them DownloadError.
    """
    here = local_folder(name)
    if here is not None:
        return here
    model = hub_name(name, revision)
    found = cached(model)
    if found is not None:
        return found
    if offline or is_offline():
        raise offline_error(model)
    if progress is not None:
        progress(f"{model}: looking it up on the Hugging Face Hub")
    return fetch(ask(model), received=received, check=check)


def missing_bytes(name: str, *, revision: str | None = None, offline: bool = False) -> int:
    """Bytes that `resolve_model` would fetch from the Hub; 0 for a model that is on this machine.

    Takes what `resolve_model` takes and raises what it raises.
    """
    if local_folder(name) is not None:
        return 0
    model = hub_name(name, revision)
    if cached(model) is not None:
        return 0
    if offline or is_offline():
        raise offline_error(model)
    return ask(model).missing_bytes
