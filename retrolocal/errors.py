"""Every error a user can meet, as one tree.

    RetrolocalError
    ├── UsageError           a flag or argument that makes no sense (exit code 2)
    ├── SettingsError        the configuration file: a key, a type or a value that makes no sense
    ├── ModelError           a model that cannot be found, read or run
    │   ├── DownloadError    the Hub refuses, cannot be reached, or sent something else
    │   ├── ConfigError      config.json: a key is missing, mistyped or unsupported
    │   └── WeightsError     safetensors: damaged, incomplete or not of this model
    ├── TokenizerError       tokenizer.json or the chat template
    ├── NumericsError        keys or values that are not finite
    ├── DataError            a file of recorded tensors that does not fit
    ├── DocumentError        a file that cannot be read as text
    ├── ContextError         more tokens than the model has positions for
    ├── MemoryLimitError     more bytes than the machine has free
    ├── LibraryError         the library cannot be read or written
    │   ├── DamagedError     bytes in it are not those that were written, or are missing
    │   ├── IdentityError    what is stored was made with another model or other settings
    │   ├── LockedError      another process is at work in it
    │   └── SpaceError       the disk has too little room
    ├── StoreError           clustered keys and values that cannot be read back
    └── Interrupted          the user stopped the work (exit code 130)

A message is one line: what happened, the value, what to do.
"""

from __future__ import annotations


class RetrolocalError(Exception):
    """Base of all errors that are shown to a user as one line."""

    exit_code = 1


class UsageError(RetrolocalError):
    exit_code = 2


class SettingsError(RetrolocalError):
    pass


class ModelError(RetrolocalError):
    pass


class DownloadError(ModelError):
    pass


class ConfigError(ModelError):
    pass


class WeightsError(ModelError):
    pass


class TokenizerError(RetrolocalError):
    pass


class NumericsError(RetrolocalError):
    pass


class DataError(RetrolocalError):
    pass


class DocumentError(RetrolocalError):
    pass


class ContextError(RetrolocalError):
    pass


class MemoryLimitError(RetrolocalError):
    pass


class LibraryError(RetrolocalError):
    pass


class DamagedError(LibraryError):
    pass


class IdentityError(LibraryError):
    pass


class LockedError(LibraryError):
    pass


class SpaceError(LibraryError):
    pass


class StoreError(RetrolocalError):
    pass


class Interrupted(RetrolocalError):
    exit_code = 130
