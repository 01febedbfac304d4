"""The variables that huggingface_hub reads, looked at before it does.

Some values it fails on while it is imported, others when it opens a connection, with a traceback
or with words about something else. Here each is one line that names the variable.
"""

from __future__ import annotations

import os
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import UsageError

ENDPOINT = "HF_ENDPOINT"
TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
CERTIFICATES = "SSL_CERT_FILE"
MAX_SECONDS = 86_400
SOCKS = ("socks5", "socks5h")


def require_library() -> None:
    """Raises UsageError for what huggingface_hub cannot even be imported or asked with.

    To be called before it is imported, whether or not the network will be used.
    """
    for name in TIMEOUTS:
        text = os.environ.get(name)
        if text is not None and not _is_seconds(text):
            raise UsageError(
                f"${name} is {text[:80]!r}; give whole seconds, 1 to {MAX_SECONDS}, or unset it"
            )
    text = os.environ.get(ENDPOINT, "")
    if text and _problem(text, ("http", "https")) is not None:
        raise _no_endpoint(text)


def require_network() -> None:
    """Raises UsageError for what no connection to the Hub could be opened with."""
    require_library()
    if os.environ.get(ENDPOINT) == "":
        raise _no_endpoint("")
    certificates = os.environ.get(CERTIFICATES)
    if certificates and not Path(certificates).is_file():
        raise UsageError(
            f"${CERTIFICATES} is {certificates[:80]!r}, which is no file; correct it, or unset it"
        )
    _require_proxies()


def _require_proxies() -> None:
    proxies = urllib.request.getproxies()
    if "*" in map(str.strip, proxies.get("no", "").split(",")):
        return
    # All are opened, whichever the Hub would be asked through.
    for scheme in ("http", "https", "all"):
        given = proxies.get(scheme)
        if not given:
            continue
        name = f"${_spelt(f'{scheme}_proxy')}"
        url = given if "://" in given else f"http://{given}"
        problem = _problem(url, ("http", "https", *SOCKS))
        if problem is not None:
            raise UsageError(
                f"{name} is no address of a proxy ({problem}); give http://HOST:PORT, or unset it"
            )
        if urlsplit(url).scheme.lower() in SOCKS and find_spec("socksio") is None:
            raise UsageError(
                f"{name} names a SOCKS proxy, for which the package socksio is needed; "
                "pip install socksio, give a proxy for HTTP, or unset it"
            )


def _no_endpoint(text: str) -> UsageError:
    return UsageError(
        f"${ENDPOINT} is {text[:80]!r}, no address of a Hub; give one such as "
        "https://huggingface.co, or unset it"
    )


def _is_seconds(text: str) -> bool:
    try:
        return 0 <= int(text) <= MAX_SECONDS
    except ValueError:
        return False


def _problem(url: str, schemes: tuple[str, ...]) -> str | None:
    """What keeps `url` from being an address; never its user or password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "its host or port makes no sense"
    if parts.scheme.lower() not in schemes:
        return f"it begins with {parts.scheme[:20]}://"
    if not parts.hostname or port == 0 or any(c.isspace() for c in url):
        return "its host or port makes no sense"
    return None


def _spelt(name: str) -> str:
    """A variable of a proxy as it is set: in lower case, which goes first, or not."""
    return name if os.environ.get(name) else name.upper()
