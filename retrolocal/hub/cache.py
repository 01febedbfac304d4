"""The cache of huggingface_hub on this disk: what of a model is there, what is not, removal.

Other programs write into it and read from it too. A model counts as there when everything that
this program needs of it is; nothing here uses the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from ..files import open_regular
from .name import HubName
from .refusals import said_plainly
from .variables import require_library

COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NEEDED = ("config.json", "tokenizer.json")
MAX_INDEX_BYTES = 64 << 20
LOCK_SECONDS = 0.05
"""Whoever fetches a file holds its lock for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """One snapshot of a model in the cache."""

    model: str
    commit: str
    revisions: tuple[str, ...]
    """Branches and tags that mean this commit here."""
    folder: Path
    bytes: int
    last_used: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheContents:
    """What the cache holds."""

    folder: Path
    models: tuple[CachedModel, ...]
    problems: tuple[str, ...]
    """One line for each folder that is not as it should be."""


def is_offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE)."""
    require_library()
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """Where downloaded models are kept."""
    require_library()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(name: HubName) -> Path:
    """The folder of a model in the cache; it need not exist."""
    return cache_folder() / f"models--{name.model.replace('/', '--')}"


def cached(name: HubName) -> Path | None:
    """The snapshot of a model in the cache, if all of it is there. Raises ModelError."""
    require_library()
    from huggingface_hub import try_to_load_from_cache

    with said_plainly(name):
        found = try_to_load_from_cache(name.model, NEEDED[0], revision=name.revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return None if missing_file(folder) else folder


def missing_file(folder: Path) -> str | None:
    """The first file that a model needs and `folder` lacks, or None."""
    for name in NEEDED:
        if not (folder / name).is_file():
            return name
    if (folder / SINGLE).is_file():
        return None
    if not (folder / INDEX).is_file():
        return SINGLE
    try:
        shards = index_shards(folder / INDEX)
    except ModelError:
        return INDEX
    return next((shard for shard in shards if not (folder / shard).is_file()), None)


def index_shards(index: Path) -> list[str]:
    """The weight files that an index names, sorted. Raises ModelError when it is no such index.

    Only plain names of safetensors files are taken: nothing outside the folder.
    """
    with open_regular(index) as file:
        data = file.read(MAX_INDEX_BYTES + 1)
    try:
        if len(data) > MAX_INDEX_BYTES:
            raise ValueError(f"larger than {MAX_INDEX_BYTES >> 20} MiB")
        shards = sorted(set(json.loads(data)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ModelError(f"{index}: is no index of weights ({problem}); pull it again") from problem
    for shard in shards:
        plain = isinstance(shard, str) and shard.endswith(".safetensors")
        if not plain or shard != Path(shard).name or "\\" in shard or "\0" in shard:
            raise ModelError(
                f"{index}: names {str(shard)[:80]!r}, which is no weight file of its folder; choose"
                " another model"
            )
    if not shards:
        raise ModelError(f"{index}: names no weights; pull it again")
    return shards


def record_revision(name: HubName, commit: str) -> None:
    """Writes down, as other programs read it, that this branch or tag means `commit` now."""
    revision = name.revision or "main"
    if revision == commit:
        return
    reference = repository_folder(name) / "refs" / revision
    with suppress(OSError):
        if reference.read_text() == commit:
            return
    reference.parent.mkdir(parents=True, exist_ok=True)
    temporary = reference.with_name(f"{reference.name}.{secrets.token_hex(4)}")
    temporary.write_text(commit)
    os.replace(temporary, reference)


def sweep(name: HubName) -> None:
    """Removes unfinished files of a model that nobody will finish: those of programs that were
    killed. What another program fetches now is locked, and stays."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder = repository_folder(name)
    for unfinished in (folder / "blobs").glob("*.incomplete"):
        blob, *unique = unfinished.name.removesuffix(".incomplete").split(".")
        # Without a name of its own it may be taken up again, until its file is whole.
        if not unique and not (folder / "blobs" / blob).exists():
            continue
        lock = cache_folder() / ".locks" / folder.name / f"{blob}.lock"
        with suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock, timeout=LOCK_SECONDS):
                unfinished.unlink()


def contents() -> CacheContents:
    """Every snapshot of every model in the cache, those used last first."""
    require_library()
    from huggingface_hub import CacheNotFound, scan_cache_dir

    folder = cache_folder()
    try:
        found = scan_cache_dir(folder)
    except (CacheNotFound, ValueError):
        return CacheContents(folder=folder, models=(), problems=())
    except OSError as problem:
        raise ModelError(f"{folder} cannot be read ({problem.strerror or problem})") from problem
    models = [
        CachedModel(
            model=repository.repo_id,
            commit=revision.commit_hash,
            revisions=tuple(sorted(revision.refs)),
            folder=revision.snapshot_path,
            bytes=revision.size_on_disk,
            last_used=repository.last_accessed,
        )
        for repository in found.repos
        if repository.repo_type == "model"
        for revision in repository.revisions
    ]
    models.sort(key=lambda one: (-one.last_used, one.model, one.commit))
    problems = tuple(" ".join(str(warning).split()) for warning in found.warnings)
    return CacheContents(folder=folder, models=tuple(models), problems=problems)


def changed_files(model: CachedModel) -> list[str]:
    """Names of the files that are not what was downloaded, all their bytes read.

    A large file lies in the cache under its SHA-256; of others, and where the file system has no
    links, nothing can be said. Raises ModelError for what cannot be read.
    """
    changed = []
    for path in sorted(model.folder.iterdir()):
        blob = path.resolve().name
        if not SHA256.fullmatch(blob):
            continue
        try:
            with open_regular(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
        if digest != blob:
            changed.append(path.name)
    return changed


def matching(name: HubName) -> list[CachedModel]:
    """The snapshots that a name means: all of a model, or those of one revision."""
    return [
        one
        for one in contents().models
        if one.model == name.model
        and (name.revision is None or name.revision in (one.commit, *one.revisions))
    ]


def remove(name: HubName) -> tuple[tuple[str, ...], int]:
    """Removes a model, or one revision of it; its commits and the bytes that were freed.

    What other revisions share stays. Raises ModelError when there is none.
    """
    require_library()
    from huggingface_hub import scan_cache_dir

    commits = tuple(one.commit for one in matching(name))
    if not commits:
        raise ModelError(f"{name} is not in {cache_folder()}; see retrolocal list")
    try:
        strategy = scan_cache_dir(cache_folder()).delete_revisions(*commits)
        strategy.execute()
    except OSError as error:
        raise ModelError(
            f"{name} could not be removed ({error.strerror or error}: {error.filename or ''}); "
            "check who may write there, or set HF_HOME to another folder"
        ) from error
    left = [one for one in contents().models if one.commit in commits and one.model == name.model]
    if left:
        raise ModelError(f"{left[0].folder} could not be removed; check who may write there")
    return commits, strategy.expected_freed_size
