"""Which model answers when nobody has chosen one, and what else this machine could hold.

The network is not asked: the choice is among what is here. It depends on the memory that the
machine has, not on what is free now, so that what was read with it yesterday is found today.
"""

from __future__ import annotations

from dataclasses import dataclass

from .amounts import size
from .errors import ModelError
from .hub import cached, hub_name, local_folder
from .hub.name import BUILTIN
from .library import Library
from .memory import machine_bytes
from .recommended import Recommendation, that_fit

SHARE = 0.8
"""Of the machine's memory that a model and its text may take; the rest is for other programs."""


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """A model, and the line that says why it is this one."""

    model: str
    note: str


def default_model(*, gpu_bytes: int | None = None, corpus: str | None = None) -> DefaultModel:
    """The one that read `corpus`, if the library knows it, else the best recommended model that is
    in the Hub's cache and fits, else the built-in one.

    `gpu_bytes` is the memory of the GPU that will hold the weights; None without one. Raises
    LibraryError for a library that cannot be read, and ModelError where that reader is gone.
    """
    read_by = None if corpus is None else _reader_of(corpus)
    if read_by is not None:
        if not _is_here(read_by):
            raise ModelError(
                f"{corpus} was read with {read_by}, which is not here any more; bring it back, or "
                "choose another with -m"
            )
        return DefaultModel(
            read_by,
            f"no model was chosen: using {read_by}, which {corpus} was read with (-m chooses "
            "another)",
        )
    for one in fitting(gpu_bytes=gpu_bytes):
        if is_here(one):
            return DefaultModel(
                one.model,
                f"no model was chosen: using {one.model}, which is here and fits this machine (-m "
                "chooses another)",
            )
    note = (
        "no model was chosen: using the built-in one, which can only quote: give it some words of "
        "the document and it continues them (-m chooses another"
    )
    better = next((one for one in fitting(gpu_bytes=gpu_bytes) if not one.gated), None)
    if better is not None:
        note += (
            f"; `retrolocal pull {better.model}`, {size(better.weight_bytes)}, fits this machine"
        )
    return DefaultModel(BUILTIN, f"{note})")


def _reader_of(corpus: str) -> str | None:
    named = Library().catalogue().named(corpus)
    return next((one.model for one in named if one.kind == "corpus" and one.model), None)


def _is_here(name: str) -> bool:
    try:
        return local_folder(name) is not None or cached(hub_name(name)) is not None
    except ModelError:
        return False


def fitting(
    *, memory_bytes: int | None = None, gpu_bytes: int | None = None
) -> list[Recommendation]:
    """Recommended models that this machine holds with a long text, the best first.

    `memory_bytes` are those that may be taken of it where something says so.
    """
    usual = int(machine_bytes() * SHARE)
    return list(
        that_fit(
            usual if memory_bytes is None else min(usual, memory_bytes),
            gpu_bytes=None if gpu_bytes is None else int(gpu_bytes * SHARE),
        )
    )


def is_here(one: Recommendation) -> bool:
    """Whether all of it is in the Hub's cache."""
    return _is_here(f"{one.model}@main")
