"""SHA-256 of large files, computed once: what tells one set of weights from another.

In the Hugging Face cache a file is a link to a blob that is named by its SHA-256; any other file is
hashed, and the result is kept in the program's cache directory under the file's identity.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import ModelError
from ..files import open_regular
from ..paths import cache_dir

_SHA256 = re.compile("[0-9a-f]{64}")
MEMO = "file-digests.json"
MAX_MEMO_BYTES = 4 << 20
MAX_MEMO_ENTRIES = 4096
SETTLED_NS = 2_000_000_000
"""A file changed less long ago may change again without its time showing it."""


def file_digests(paths: Iterable[Path], memo: Path | None = None) -> dict[str, str]:
    """Name -> SHA-256 of each file, sorted by name.

    `memo` is the file that remembers digests, in the cache directory if None. Raises ModelError for
    a file that cannot be read, and for two of one name.
    """
    memo = cache_dir() / MEMO if memo is None else memo
    known = _read_memo(memo)
    before = dict(known)
    digests: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: path.name):
        if path.name in digests:
            raise ModelError(f"{path} occurs twice under one name; give each weight file once")
        try:
            digests[path.name] = _digest(path, known)
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror})") from error
    if known != before:
        _write_memo(memo, known)
    return digests


def _digest(path: Path, known: dict[str, str]) -> str:
    blob = path.resolve(strict=True)
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        identity = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
        if identity in known:
            return known[identity]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = os.fstat(file.fileno())
    unchanged = (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    if unchanged and time.time_ns() - status.st_mtime_ns > SETTLED_NS:
        known[identity] = digest
    return digest


def _read_memo(memo: Path) -> dict[str, str]:
    try:
        with memo.open("rb") as file:
            values = json.loads(file.read(MAX_MEMO_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {k: v for k, v in values.items() if isinstance(v, str) and _SHA256.fullmatch(v)}


def _write_memo(memo: Path, known: dict[str, str]) -> None:
    newest = dict(list(known.items())[-MAX_MEMO_ENTRIES:])
    scratch = memo.with_name(f"{memo.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(newest))
        scratch.replace(memo)
    except OSError:
        # Computed again next time; what was written of it takes the room of something else.
        with contextlib.suppress(OSError):
            scratch.unlink()
