"""A model from the Hub into the cache: asked for, checked, then fetched file by file.

`ask` says what would be fetched before anything is. `fetch` takes the small files first, so that a
model that cannot be used is refused before its weights are on their way, then one weight file at a
time: when a download breaks at most one file is unfinished, and what is complete stays. A file is
kept only if it has the size, and a large one the SHA-256, that the Hub lists. A branch is written
down when all of it is there, so that the copy from before stays in use until then.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..amounts import size
from ..errors import DownloadError
from ..paths import disk_free
from .cache import (
    COMMIT,
    INDEX,
    NEEDED,
    SINGLE,
    cache_folder,
    index_shards,
    missing_file,
    record_revision,
    repository_folder,
    sweep,
)
from .name import HubName
from .refusals import nonsense, require_token, said_plainly
from .variables import require_network

Received = Callable[[int, int], None]
"""Takes the bytes that are here and all that are to come; what it raises ends the download."""

SETTINGS = (
    *NEEDED,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
)
SHARD = re.compile(r"model-[\w.-]*\.safetensors", re.ASCII)
WEIGHTS = ".safetensors"
SPARE = 1.02
"""Free space asked for, over what is fetched: file systems keep books too."""
CHUNK_BYTES = 1 << 20
"""How often progress is told, and a stop is heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of a model as the Hub lists it."""

    name: str
    bytes: int
    sha256: str | None
    """Of a large file; None for one that lies in git itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What a model consists of on the Hub, and what of it is not here yet."""

    name: HubName
    commit: str
    files: tuple[HubFile, ...]
    """Settings first, then weights."""

    @property
    def folder(self) -> Path:
        """The snapshot that the files become."""
        return repository_folder(self.name) / "snapshots" / self.commit

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if not self._is_here(file))

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        return sum(file.bytes for file in self.missing)

    def _is_here(self, file: HubFile) -> bool:
        places = [self.folder / file.name]
        if file.sha256 is not None:
            places.append(repository_folder(self.name) / "blobs" / file.sha256)
        return any(place.is_file() and place.stat().st_size == file.bytes for place in places)


def ask(name: HubName) -> Download:
    """What the Hub has of a model. Uses the network.

    Raises DownloadError, also for a model that lacks what this program reads, and UsageError for
    variables that no connection can be opened with.
    """
    require_network()
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with said_plainly(name), _quiet():
        require_token()
        api = HfApi()
        commit = api.model_info(name.model, revision=name.revision).sha
        if commit is None or not COMMIT.fullmatch(commit):
            raise nonsense(name, f"the commit is {commit!r:.60}")
        tree = [
            HubFile(
                name=entry.path,
                bytes=int(entry.size),
                sha256=None if entry.lfs is None else str(entry.lfs.sha256),
            )
            for entry in api.list_repo_tree(name.model, revision=commit)
            if isinstance(entry, RepoFile)
        ]
    return Download(name=name, commit=commit, files=tuple(_needed(name, tree)))


def fetch(
    download: Download,
    *,
    received: Received | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Brings the files that are missing and answers the folder of the model.

    `received` is told bytes, of this download alone; `check` gets the folder once its settings are
    there, before any weight is fetched. What they raise ends the download. Raises DownloadError.
    """
    _require_room(download)
    wanted = {file.name: file for file in download.missing}
    meter = _Meter(sum(file.bytes for file in wanted.values()), received)
    weights = sorted(name for name in wanted if name.endswith(WEIGHTS))
    with said_plainly(download.name), _quiet():
        _fetch_settings(download, meter)
        if check is not None:
            check(download.folder)
        for name in _named_by_index(download, weights):
            _fetch_file(download, wanted[name], meter)
        record_revision(download.name, download.commit)
        sweep(download.name)
    lacking = missing_file(download.folder)
    if lacking is not None:
        raise DownloadError(f"{download.name} lacks {lacking}; choose another model")
    return download.folder


def fetch_settings(download: Download) -> Path:
    """The folder of the model with everything but its weights: enough to plan. As `fetch`."""
    with said_plainly(download.name), _quiet():
        _fetch_settings(download, _Meter(0, None))
    return download.folder


def _fetch_settings(download: Download, meter: _Meter) -> None:
    for file in download.missing:
        if not file.name.endswith(WEIGHTS):
            _fetch_file(download, file, meter)


def _needed(name: HubName, tree: list[HubFile]) -> Iterator[HubFile]:
    """Of all files of a repository those that this program reads; raises DownloadError."""
    files = {file.name: file for file in tree}
    for needed in NEEDED:
        if needed not in files:
            raise DownloadError(f"{name} lacks {needed}: {_what_it_is(files)}")
    yield from (files[setting] for setting in SETTINGS if setting in files)
    if SINGLE in files:
        yield files[SINGLE]
    elif INDEX in files:
        yield files[INDEX]
        yield from (files[shard] for shard in sorted(files) if SHARD.fullmatch(shard))
    else:
        raise DownloadError(f"{name} lacks {SINGLE}: {_what_it_is(files)}")


def _what_it_is(files: dict[str, HubFile]) -> str:
    kinds = (
        (r"adapter_model\..*", "it holds an adapter, not a whole model", "name the whole one"),
        (r".*\.gguf", "it holds GGUF, which is not read", "take the original model"),
        (r".*\.(bin|pt|pth|ckpt)", "it holds pickles, which are not read", "look for safetensors"),
        (r"tokenizer\.model", "its tokenizer is in SentencePiece's format only", "take another"),
    )
    for pattern, what, advice in kinds:
        found = next((name for name in sorted(files) if re.fullmatch(pattern, name)), None)
        if found is not None:
            return f"{what} ({found[:60]}); {advice}"
    return "it holds no language model in Hugging Face's format; choose another"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRoom:
    """What a download takes where models are kept, and what is free there."""

    folder: Path
    needed: int
    free: int

    @property
    def lacking(self) -> int:
        return max(0, self.needed - self.free)


def disk_room(download: Download) -> DiskRoom:
    """Of what is missing now."""
    folder = cache_folder()
    needed = int(download.missing_bytes * SPARE)
    return DiskRoom(folder=folder, needed=needed, free=disk_free(folder))


def _require_room(download: Download) -> None:
    room = disk_room(download)
    if room.lacking:
        raise DownloadError(
            f"{download.name} needs {size(room.needed)} in {room.folder} and {size(room.free)} are"
            f" free; make room for {size(room.lacking)} more, or set HF_HOME to another disk"
        )


def _named_by_index(download: Download, weights: list[str]) -> list[str]:
    """The weight files to fetch: those that the index names, where there is one."""
    listed = {file.name for file in download.files}
    if INDEX not in listed:
        return weights
    named = index_shards(download.folder / INDEX)
    absent = [shard for shard in named if shard not in listed]
    if absent:
        raise DownloadError(
            f"{download.name}: {INDEX} names {absent[0][:80]}, which the Hub does not have; choose"
            " another model"
        )
    return [name for name in weights if name in named]


def _fetch_file(download: Download, file: HubFile, meter: _Meter) -> None:
    from huggingface_hub import hf_hub_download

    place = download.folder / file.name
    if place.exists() and place.stat().st_size != file.bytes:
        _discard(place)
    hf_hub_download(
        download.name.model,
        file.name,
        revision=download.commit,
        tqdm_class=_bar_of(meter),
    )
    problem = _difference(place, file, meter)
    if problem is not None:
        _discard(place)
        raise DownloadError(
            f"{download.name}: {file.name} came damaged ({problem}) and was removed; pull it again"
            " (if that repeats, the fault is with the Hub or HF_ENDPOINT)"
        )
    meter.finish(file.bytes)


def _difference(place: Path, file: HubFile, meter: _Meter) -> str | None:
    """What is wrong with a file that was fetched, or None."""
    found = place.stat().st_size
    if found != file.bytes:
        return f"{found:,} bytes in place of {file.bytes:,}"
    if file.sha256 is None:
        return None
    digest = hashlib.sha256()
    with place.open("rb") as data:
        while block := data.read(8 * CHUNK_BYTES):
            digest.update(block)
            meter.advance(0)
    return None if digest.hexdigest() == file.sha256 else "its SHA-256 is another"


def _discard(place: Path) -> None:
    """Removes a file of a snapshot and the blob that it is a link to."""
    blob = place.resolve()
    place.unlink(missing_ok=True)
    if blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)


class _Meter:
    """Bytes of a download: of the files that are done, and of the one that is coming."""

    def __init__(self, total: int, received: Received | None) -> None:
        self._total = total
        self._received = received
        self._done = 0
        self._coming = 0

    def advance(self, count: int) -> None:
        self._coming += count
        if self._received is not None:
            self._received(min(self._done + self._coming, self._total), self._total)

    def finish(self, count: int) -> None:
        """A file of `count` bytes is here, whoever fetched it."""
        self._done += count
        self._coming = 0
        self.advance(0)


def _bar_of(meter: _Meter) -> type[Any]:
    """What huggingface_hub takes for the class of its progress bars; draws nothing."""

    class Bar:
        def __init__(self, **options: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            meter.advance(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None:
            meter.advance(0)

        def set_postfix_str(self, text: str = "", refresh: bool = False) -> None:
            pass

        def set_transfer_postfix_str(self, text: str = "", refresh: bool = False) -> None:
            pass

        def close(self) -> None:
            pass

    return Bar


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's remarks stay out of the terminal, and its bytes come in small portions."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    level, portion = hub_logging.get_verbosity(), constants.DOWNLOAD_CHUNK_SIZE
    hub_logging.set_verbosity(logging.CRITICAL)
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        constants.DOWNLOAD_CHUNK_SIZE = portion
