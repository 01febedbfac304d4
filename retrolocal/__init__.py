"""retrolocal: read a very long text with a local language model.

`load` opens a model and gives a `Session`; both are imported when first used, so that importing
the package costs nothing. Where PyTorch is not imported before, its idle threads then leave the
cores to others (`config.limit_spinning`).
"""

from __future__ import annotations

# Type checkers take it for typing's, whose import an interrupt at the start would meet.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .session import Session, load

__all__ = ["Session", "__version__", "load"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name in ("Session", "load"):
        from .config import limit_spinning

        limit_spinning()
        from . import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
