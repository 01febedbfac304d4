"""What a model is called: a folder, `builtin`, or an id on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError, UsageError
from ..paths import builtin_model

BUILTIN = "builtin"
OTHERWISE = "give a folder, or use -m builtin"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)\w[\w.+/-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the Hub; as text `org/name[@revision]`."""

    model: str
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""

    def __str__(self) -> str:
        return self.model if self.revision is None else f"{self.model}@{self.revision}"


def local_folder(name: str) -> Path | None:
    """The folder that `name` means without the Hub; None for a Hub id. Raises ModelError."""
    if name == BUILTIN:
        return _checked(builtin_model(), "the installation is incomplete; reinstall retrolocal")
    try:
        folder = Path(name).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ModelError(f"{name[:80]!r} cannot be opened ({reason}); check the path") from problem
    if is_folder:
        advice = "give the folder of a model"
        if _means_hub(name):
            advice += f", or {name}@main for the model on the Hub"
        return _checked(folder, advice)
    if exists:
        raise ModelError(f"{name} is a file; give the folder that holds config.json")
    model = name.partition("@")[0]
    if name.startswith((".", "/", "~", "\\")) or "\\" in name or model.count("/") > 1:
        raise ModelError(f"no such folder: {name}; check the path, or {OTHERWISE}")
    hub_name(name)
    return None


def hub_name(name: str, revision: str | None = None) -> HubName:
    """`org/name[@revision]` as a name on the Hub, whether or not a folder is called so.

    Raises ModelError for what cannot be one and UsageError for two revisions.
    """
    if name == BUILTIN:
        raise ModelError(
            "builtin is part of the program: there is nothing to fetch and nothing to remove"
        )
    model, at, tagged = name.partition("@")
    if not _HUB_ID.fullmatch(model) or (at and not tagged):
        raise ModelError(
            f"{name!r} is neither a folder nor a Hub id; write org/name[@revision] or builtin"
        )
    if revision and tagged and revision != tagged:
        raise UsageError(f"{name} and --revision {revision} contradict each other; give one")
    chosen = revision or tagged or None
    if chosen is not None and not _REVISION.fullmatch(chosen):
        raise ModelError(f"{chosen!r} is no revision of {model}; give a branch, a tag or a commit")
    return HubName(model, chosen)


def lasting_name(name: str, revision: str | None = None) -> str:
    """What means the same model another day and from another folder (unless that has a folder of
    the name of a Hub id).

    Raises ModelError, and UsageError for two revisions.
    """
    if name == BUILTIN:
        return name
    folder = local_folder(name)
    return str(hub_name(name, revision) if folder is None else folder.resolve())


def shadow_note(name: str) -> str | None:
    """A line for a name that could have meant a model on the Hub and means a folder."""
    if not _means_hub(name) or not Path(name).is_dir():
        return None
    return f"{name} is a folder here and is used; {name}@main is the model on the Hub"


def _means_hub(name: str) -> bool:
    """Whether a name could be one on the Hub as well as a folder's: not `./model`."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(".")


def _checked(folder: Path, advice: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; {advice}")
    return folder
