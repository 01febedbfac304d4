"""Every directory the program uses.

Answers where things are; makes nothing and loads no model code.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path, user_data_path, user_state_path

from .config import environment


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


def library_dir() -> Path:
    """Documents that have been read: `$RETROLOCAL_LIBRARY`, else the user's data directory
    (`$XDG_DATA_HOME/retrolocal/library`)."""
    given = environment("LIBRARY")
    if given is not None:
        return Path(given).expanduser().absolute()
    return user_data_path("retrolocal", appauthor=False) / "library"


def state_dir() -> Path:
    """What a person would miss but no program needs: chats, a log.

    `$XDG_STATE_HOME/retrolocal`.
    """
    return user_state_path("retrolocal", appauthor=False)
