"""retrolocal: read a very long text with a local language model.

`load` opens a model and gives a `Session`; both are imported when first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .opening import load
    from .session import Session

__all__ = ["Session", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Session":
        from .session import Session

        return Session
    if name == "load":
        from .opening import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
