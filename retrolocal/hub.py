"""The name of a model to a folder on this machine.

A folder is itself, `builtin` is the model that comes with the program, anything else is an id on
the Hugging Face Hub. A model that is in the local cache needs no network. Only data is fetched:
safetensors, JSON and templates, never pickles or code.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ModelError
from .paths import builtin_model

WANTED = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_OTHERWISE = "give a folder, or use -m builtin"


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    received: Callable[[int, int], None] | None = None,
) -> Path:
    """The folder of the model `name`: `builtin`, a folder, or `org/name[@revision]` on the Hub.

    With `offline` nothing is fetched. `progress` receives lines about a download and `received`
    its bytes so far and in all (0 when unknown), from any thread; what they raise ends it.
    Raises ModelError.
    """
    here = _local(name)
    if here is not None:
        return here
    model, _, tagged = name.partition("@")
    return _from_hub(model, revision or tagged or None, offline, progress, received)


def _local(name: str) -> Path | None:
    """The folder that `name` means without the Hub; None for a Hub id. Raises ModelError."""
    if name == "builtin":
        return _checked(builtin_model(), "the installation is incomplete; reinstall retrolocal")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder, "give the folder of a model")
    if folder.exists():
        raise ModelError(f"{name} is a file; give the folder that holds config.json")
    model, _, tagged = name.partition("@")
    if name.startswith((".", "/", "~", "\\")) or "\\" in name or model.count("/") > 1:
        raise ModelError(f"no such folder: {name}; check the path, or {_OTHERWISE}")
    if not _HUB_ID.fullmatch(model) or (tagged == "" and "@" in name):
        raise ModelError(f"{name!r} is neither a folder nor a Hub id; write org/name[@revision]")
    return None


def _checked(folder: Path, advice: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; {advice}")
    return folder


def missing_bytes(name: str, *, revision: str | None = None, offline: bool = False) -> int:
    """Bytes that `resolve_model` would fetch from the Hub; 0 for a model that is on this machine.

    Takes what `resolve_model` takes and raises what it raises.
    """
    if _local(name) is not None:
        return 0
    model, _, tagged = name.partition("@")
    revision = revision or tagged or None
    with _said_plainly(model, revision):
        if _cached(model, revision) is not None:
            return 0
        if offline:
            raise _offline(_named(model, revision))
        from huggingface_hub import errors, snapshot_download

        try:
            files = snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(WANTED),
                dry_run=True,
                tqdm_class=_reporter(model, None, None),
            )
        except errors.DryRunError as error:
            raise error.__cause__ or error from error
        return sum(file.file_size or 0 for file in files if file.will_download)


def cache_folder() -> Path:
    """Where downloaded models are kept."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _from_hub(
    model: str,
    revision: str | None,
    offline: bool,
    progress: Callable[[str], None] | None,
    received: Callable[[int, int], None] | None,
) -> Path:
    named = _named(model, revision)
    with _said_plainly(model, revision):
        cached = _cached(model, revision)
        if cached is not None:
            return cached
        if offline:
            raise _offline(named)
        if progress is not None:
            progress(f"{named}: looking it up on the Hugging Face Hub")
        # Importing it takes a third of a second, which no command but this one should pay.
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(WANTED),
            tqdm_class=_reporter(named, progress, received),
        )
    missing = _missing(Path(folder))
    if missing:
        raise ModelError(
            f"{named} lacks {missing}: the Hub has none (retrolocal needs safetensors), or it"
            f" cannot be reached to complete the download; {_OTHERWISE}"
        )
    return Path(folder)


@contextmanager
def _said_plainly(model: str, revision: str | None) -> Iterator[None]:
    """What the Hub's client raises becomes a ModelError that says what to do."""
    from huggingface_hub import errors

    # The base of the HTTP library's errors, whichever library this version of the Hub client uses.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    named = _named(model, revision)
    try:
        yield
    except errors.HFValidationError as error:
        raise ModelError(f"{named!r} is no Hub id ({_reason(error)})") from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{named} is gated: accept its terms on https://huggingface.co/{model}, then run"
            " `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{named} does not exist on the Hub, or is private; check the name, or run"
            " `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{model} has no revision {revision}; check it on the Hub") from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise _offline(named) from error
        raise _unreachable(named, error.__cause__ or error) from error
    except (http_error, ConnectionError) as error:
        raise _unreachable(named, error) from error
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{named} could not be downloaded ({_reason(error)})") from error


def _named(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model}@{revision}"


def _cached(model: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, if all of it is there."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=list(WANTED), local_files_only=True
            )
        )
    except errors.LocalEntryNotFoundError:
        return None
    return None if _missing(folder) else folder


def _missing(folder: Path) -> str | None:
    """The first file that a model needs and `folder` lacks, or None."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            return name
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return None if (folder / "model.safetensors").is_file() else "model.safetensors"
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return index.name
    return next((s for s in sorted(map(str, shards)) if not (folder / s).is_file()), None)


def _offline(named: str) -> ModelError:
    return ModelError(
        f"{named} is not (completely) in the local cache and the program is offline;"
        f" go online once, or {_OTHERWISE}"
    )


def _unreachable(named: str, error: BaseException) -> ModelError:
    return ModelError(
        f"{named} is not in the local cache and the Hub cannot be reached ({_reason(error)});"
        f" connect, or {_OTHERWISE}"
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _reporter(
    named: str,
    progress: Callable[[str], None] | None,
    received: Callable[[int, int], None] | None,
) -> type[Any]:
    """A progress bar class that tells `progress` and `received` and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    base: type[Any] = tqdm

    class Reporter(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the two bars in bytes, the other one counts what the network carried.
            self.told = not str(kwargs.get("name")).endswith(".transfer")
            silent = progress is None and received is None
            kwargs.update(disable=silent, file=io.StringIO(), leave=False)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            # Not in `display`: the lock that is held there would outlive an exception.
            if received is not None and self._counts_bytes():
                received(int(self.n), int(self.total or 0))
            return shown

        def _counts_bytes(self) -> bool:
            return bool(self.told and self.unit == "B" and self.n)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if progress is not None and self._counts_bytes():
                total = f" of {self.total / 1e6:.1f}" if self.total else ""
                progress(f"{named}: {self.n / 1e6:.1f}{total} MB")

        def clear(self, nolock: bool = False) -> None:
            pass

    return Reporter
