"""Variables that the Hub's library would fail on: one line that names the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub

from retrolocal.errors import UsageError
from retrolocal.hub import ask, hub_name
from retrolocal.hub.variables import require_library, require_network


@pytest.fixture(autouse=True)
def _no_proxy(cache: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_ENDPOINT", "http://x:abc"),
        ("HF_ENDPOINT", "http://x:99999"),
        ("HF_ENDPOINT", "http://[::1"),
        ("HF_ENDPOINT", "nonsense"),
        ("HF_ENDPOINT", "ftp://x"),
        ("HF_ENDPOINT", "http://"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", ""),
        ("HF_HUB_ETAG_TIMEOUT", "-1"),
    ],
)
def test_what_the_library_cannot_be_imported_with(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError) as caught:
        require_library()
    assert str(caught.value).startswith(f"${variable} is {value!r}")
    assert str(caught.value).endswith("or unset it")


@pytest.mark.parametrize(
    "url", ["https://hf.example", "http://127.0.0.1:9/mirror/", "http://[::1]:9"]
)
def test_an_address_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")
    monkeypatch.setenv("ALL_PROXY", "proxy.example:8080")
    require_network()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HF_ENDPOINT", "", "$HF_ENDPOINT is ''"),
        ("SSL_CERT_FILE", "/no/such.pem", "$SSL_CERT_FILE is '/no/such.pem', which is no file"),
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "$ALL_PROXY names a SOCKS proxy"),
        ("https_proxy", "socks5h://me:secret@x", "$https_proxy names a SOCKS proxy"),
        ("HTTPS_PROXY", "ftp://x:3", "$HTTPS_PROXY is no address of a proxy (it begins with ftp:"),
        ("HTTP_PROXY", "http://me:secret@x:abc", "$HTTP_PROXY is no address of a proxy"),
    ],
)
def test_what_no_connection_can_be_opened_with(
    variable: str, value: str, words: str, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrolocal.hub.variables.find_spec", lambda name: None)
    monkeypatch.setenv(variable, value)
    require_library()
    with pytest.raises(UsageError) as caught:
        ask(hub_name("org/model"))
    assert str(caught.value).startswith(words)
    assert "secret" not in str(caught.value)
    assert not fake_hub.requests
    if "PROXY" in variable.upper():
        monkeypatch.setenv("NO_PROXY", "*")
        require_network()


def test_a_token_that_no_request_can_carry(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parent / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"the token in .*token cannot be read"):
        ask(hub_name("org/model"))
    monkeypatch.setenv("HF_TOKEN", "ü")
    with pytest.raises(UsageError, match=r"^the token of \$HF_TOKEN holds characters"):
        ask(hub_name("org/model"))
    assert not fake_hub.requests


@pytest.mark.parametrize(
    "words",
    [
        "list",
        "show org/model",
        "rm org/model",
        "pull org/model --offline",
        "plan -m org/model --tokens 5",
        "chat -m org/model -p x",
    ],
)
def test_every_command_says_it(words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retrolocal", *words.split()],
        env={**os.environ, "HF_ENDPOINT": "http://[::1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("retrolocal: $HF_ENDPOINT is 'http://[::1', no address")
    assert done.stderr.count("\n") == 1
