"""Every directory the program uses.

Answers where things are; makes nothing and loads no model code.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path, user_data_path, user_state_path

from .settings import Given, examined_settings, given_settings


def builtin_model() -> Path:
    """The folder of the model that comes with the program (it need not exist in a source tree)."""
    spec = find_spec("retrolocal.models")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "builtin"


def cache_dir() -> Path:
    """What can be made again: compiled kernels, measurements. `$XDG_CACHE_HOME/retrolocal`."""
    return user_cache_path("retrolocal", appauthor=False)


def spill_dir() -> Path:
    """Where keys and values go that do not fit into memory, in files without a name.

    Not the folder for temporary files, which is memory on many systems.
    """
    return cache_dir() / "store"


def quantised_dir() -> Path:
    """Where quantised weights are kept for the next start."""
    return cache_dir() / "quantised"


def library_dir() -> Path:
    """Documents that have been read: `$RETROLOCAL_LIBRARY`, else `library` of the configuration
    file (from the folder of that file on), else the user's data directory
    (`$XDG_DATA_HOME/retrolocal/library`). Raises what `given_settings` does."""
    return library_folder(given_settings())


def library_folder(settings: Mapping[str, Given]) -> Path:
    """`library_dir` under these settings."""
    given = settings.get("library")
    if given is not None:
        folder = Path(str(given.value)).expanduser()
        return (Path(given.where).parent / folder if given.origin == "file" else folder).absolute()
    return user_data_path("retrolocal", appauthor=False) / "library"


def library_setting() -> str:
    """What says where the library is, or can: the variable, or the configuration file's key."""
    given = examined_settings()[0].get("library")
    from_file = given is not None and given.origin == "file"
    return f"library in {given.where}" if given and from_file else "RETROLOCAL_LIBRARY"


def state_dir() -> Path:
    """What a person would miss but no program needs: chats, a log.

    `$XDG_STATE_HOME/retrolocal`.
    """
    return user_state_path("retrolocal", appauthor=False)


def disk_free(folder: Path) -> int:
    """Bytes free where `folder` is or will be."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return shutil.disk_usage(there).free
