"""What can go wrong between here and the Hub, as one line each that says what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ..config import hub_token_variable
from ..errors import DownloadError, ModelError, UsageError
from .name import OTHERWISE, HubName
from .variables import require_library

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KEPT = "what is complete is kept"
PUBLIC_HUB = "https://huggingface.co"


@contextmanager
def said_plainly(name: HubName) -> Iterator[None]:
    """What the Hub's client raises becomes a ModelError that says what to do."""
    require_library()
    from huggingface_hub import errors

    # The base of the HTTP library's errors, whichever library this version of the Hub client uses.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except ModelError:
        raise
    except errors.HFValidationError as error:
        raise ModelError(f"'{name}' is no Hub id ({reason(error)})") from error
    except errors.LocalEntryNotFoundError as error:
        raise _refused(name, error.__cause__ or error, http_error) from error
    except (http_error, OSError, RuntimeError, errors.XetDownloadError) as error:
        raise _refused(name, error, http_error) from error
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, IndexError) as error:
        raise nonsense(name, reason(error)) from error


def offline_error(name: HubName) -> DownloadError:
    return DownloadError(
        f"{name} is not (completely) in the local cache and the program is offline;"
        f" go online once, or {OTHERWISE}"
    )


def nonsense(name: HubName, what: str) -> DownloadError:
    """The error of an answer that a Hub would not give."""
    return DownloadError(
        f"{name}: {_hub()} does not answer as a Hub does ({what}); check HF_ENDPOINT and the"
        " network (a login page in between?)"
    )


def reason(error: BaseException) -> str:
    """What an exception says, for the middle of a message."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def require_token() -> None:
    """Raises UsageError for a token that cannot be read, or that no request can carry."""
    from huggingface_hub import constants

    try:
        token = _token()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the token in {constants.HF_TOKEN_PATH} cannot be read ({reason(error)}); run `hf auth"
            " login`"
        ) from error
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise UsageError(
            f"the token{_token_source()} holds characters that no token has; correct it, or run "
            "`hf auth login`"
        )


def _refused(name: HubName, error: BaseException, http_error: type[Exception]) -> DownloadError:
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled():
            return offline_error(name)
        case errors.HfHubHTTPError() if _elsewhere(error) and _status(error) in (401, 403):
            return DownloadError(
                f"{name}: {_answering(error)}, to where the Hub sends for its files, answers "
                f"{_status(error)}; {_KEPT}: start again, or check the network (a proxy?)"
            )
        case errors.GatedRepoError():
            return _gated(name)
        case errors.RepositoryNotFoundError() if not _bad_token(error):
            return _unknown(name)
        case errors.RevisionNotFoundError():
            return DownloadError(
                f"{name.model} has no revision {name.revision or 'main'}; check it on the Hub"
            )
        case errors.EntryNotFoundError():
            return DownloadError(
                f"{name}: the Hub lists a file and does not have it ({reason(error)}); try later"
            )
        case errors.DisabledRepoError():
            return DownloadError(f"{name} was disabled by the Hub; choose another model")
        case errors.FileMetadataError():
            return nonsense(name, reason(error))
        case errors.HfHubHTTPError():
            return _http(name, error)
    if isinstance(error, (http_error, ConnectionError)):
        return _unreachable(name, error)
    if isinstance(error, OSError) and error.errno in _FULL:
        return DownloadError(
            f"{name}: the disk of {_cache()} is full; {_KEPT}: make room, or set HF_HOME to"
            " another disk, and start again"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return DownloadError(
            f"{name} could not be downloaded ({error.strerror}: {error.filename}); set HF_HOME to"
            " a folder that can be written"
        )
    return DownloadError(f"{name} could not be downloaded ({reason(error)}); {_KEPT}: start again")


def _http(name: HubName, error: Any) -> DownloadError:
    response, status = error.response, _status(error)
    if status == 401 and _token() is None:
        return _unknown(name)
    if status == 401:
        return DownloadError(
            f"{name}: the Hub does not accept the token{_token_source()}; correct it, or run"
            " `hf auth login`"
        )
    if status == 403 and _token() is None:
        return DownloadError(
            f"{name}: {_hub()} refuses access (403), and no token was given; run `hf auth login`"
            " with an account that may read this model"
        )
    if status == 403:
        return DownloadError(
            f"{name}: the Hub refuses access to the token{_token_source()} (403); use one that may"
            " read this model (`hf auth login`)"
        )
    if status == 429:
        waits = str(response.headers.get("Retry-After", ""))
        when = f"in {waits} seconds" if re.fullmatch(r"\d{1,6}", waits) else "in some minutes"
        return DownloadError(
            f"{name}: the Hub asks to slow down (429); {_KEPT}: start again {when}"
            + ("" if _token() else ", or log in for a higher limit (`hf auth login`)")
        )
    if status >= 500:
        return DownloadError(
            f"{name} is not in the local cache and the Hub cannot be reached "
            f"({_answering(error)} answers {status}); {_KEPT}: try later, or {OTHERWISE}"
        )
    return DownloadError(
        f"{name}: {_answering(error)} answers {status} ({reason(error)}); {OTHERWISE}"
    )


def _unreachable(name: HubName, error: BaseException) -> DownloadError:
    return DownloadError(
        f"{name} is not in the local cache and the Hub cannot be reached ({reason(error)});"
        f" connect, or {OTHERWISE}"
    )


def _gated(name: HubName) -> DownloadError:
    then = "then run `hf auth login`"
    if _token() is not None:
        then = f"with the account of the token{_token_source()}, and wait until access is granted"
    return DownloadError(f"{name} is gated: accept its terms on {PUBLIC_HUB}/{name.model}, {then}")


def _unknown(name: HubName) -> DownloadError:
    then = "or run `hf auth login`"
    if _token() is not None:
        then = f"or use a token that may read it (now that{_token_source()})"
    return DownloadError(f"{name} does not exist on the Hub, or is private; check the name, {then}")


def _bad_token(error: Any) -> bool:
    """Whether a 401 without a reason answers a token: the repository may well exist."""
    return error.response.status_code == 401 and _token() is not None


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _elsewhere(error: Any) -> bool:
    """Whether another host refused than the Hub's: where it keeps its files."""
    return str(error.response.url.host) != urlsplit(_hub()).hostname


def _answering(error: Any) -> str:
    """Who refused."""
    return f"https://{error.response.url.host}" if _elsewhere(error) else _hub()


def _token() -> str | None:
    from huggingface_hub import get_token

    token: str | None = get_token()
    return token


def _token_source() -> str:
    """` of $HF_TOKEN`: where the token comes from; empty without one."""
    from huggingface_hub import constants

    if _token() is None:
        return ""
    return f" of {hub_token_variable() or constants.HF_TOKEN_PATH}"


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
