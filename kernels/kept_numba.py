"""Compiled code on disk, where numba finds it in the next run: it may be missing, never in the way.

numba ends a run that cannot write or read such a file. Here code that cannot be kept is compiled
and used all the same, `compiled.unkept_note` says why, and what cannot be read is compiled anew.
numba writes a file beside and renames it: a full disk leaves whole files only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import caching

from .compiled import code_not_kept, kernel_folder


def kept_code(function: Callable[..., Any]) -> Any:
    """What numba asks for the compiled code of a function, and gives it to."""
    if kernel_folder() is None:
        return caching.NullCache()
    try:
        return KeptCode(function)
    except OSError as error:
        code_not_kept(error)
        return caching.NullCache()


class _Place(caching.UserProvidedCacheLocator):
    """Below `kernel_folder`. numba's own choice would end in places whose names say less."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(kernel_folder() / self.get_suitable_cache_subpath(file))

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Place:
        place = cls(function, file)
        place.ensure_cache_path()
        return place


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = (_Place,)


class KeptCode(caching.FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        # Unpickling what is damaged raises anything.
        except Exception:
            try:
                self.flush()
            except OSError as error:
                code_not_kept(error)
                self.disable()
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        try:
            super().save_overload(signature, code)
        except OSError as error:
            code_not_kept(error)
