"""The name of a model to a folder on this machine.

A folder is itself, `builtin` is the model that comes with the program, anything else is an id on
the Hugging Face Hub, kept in the cache that all programs of that library share. A model that is in
the cache needs no network. Only data is fetched: safetensors, JSON and templates, never pickles or
code; a file counts only when it is complete and is what the Hub lists.

    name -> locate_model: local_folder | HubName -> cached | ask -> Download -> fetch

huggingface_hub is imported inside functions: it takes a third of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..amounts import size
from ..errors import UsageError
from .cache import cache_folder, cached, is_offline
from .download import DiskRoom, Download, Received, ask, disk_room, fetch, fetch_settings
from .name import HubName, hub_name, lasting_name, local_folder, shadow_note
from .refusals import offline_error
from .retries import retries_told

__all__ = [
    "DiskRoom",
    "Download",
    "HubName",
    "Received",
    "ask",
    "cache_folder",
    "cached",
    "disk_room",
    "fetch",
    "fetch_settings",
    "hub_name",
    "is_offline",
    "lasting_name",
    "local_folder",
    "locate_model",
    "missing_bytes",
    "resolve_model",
    "retries_told",
    "shadow_note",
]


def locate_model(
    name: str, *, revision: str | None = None, offline: bool = False
) -> Path | Download:
    """The folder of the model `name`, or what has to be fetched for it.

    `name` is `builtin`, a folder, or `org/name[@revision]` on the Hub. With `offline` the Hub is
    not asked. Raises ModelError, among them DownloadError, and UsageError for a revision of what
    has none.
    """
    here = local_folder(name)
    if here is not None:
        if revision is not None:
            raise UsageError(
                f"--revision is {revision!r:.80} and {name} is no model of the Hub; leave it out"
            )
        return here
    model = hub_name(name, revision)
    found = cached(model)
    if found is not None:
        return found
    if offline or is_offline():
        raise offline_error(model)
    return ask(model)


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    received: Received | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """The folder of the model `name`, fetched if need be.

    Takes what `locate_model` takes and raises what it raises. `progress` receives a line when
    something is fetched; `received` and `check` are those of `fetch`.
    """
    found = locate_model(name, revision=revision, offline=offline)
    if isinstance(found, Path):
        return found
    if progress is not None:
        progress(f"{found.name}: fetching {size(found.missing_bytes)} from the Hugging Face Hub")
    return fetch(found, received=received, check=check)


def missing_bytes(name: str, *, revision: str | None = None, offline: bool = False) -> int:
    """Bytes that `resolve_model` would fetch; 0 for a model that is on this machine."""
    found = locate_model(name, revision=revision, offline=offline)
    return 0 if isinstance(found, Path) else found.missing_bytes
