"""Every way in which the Hub can refuse, through the real library: one line and the next step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, Fault, point_at

from retrolocal.errors import ModelError
from retrolocal.hub import missing_bytes, resolve_model


def refused(name: str = "org/model", *, offline: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(name, offline=offline)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize("name", ["org/mo--del", "org/-model", "org/" + "m" * 120])
def test_a_name_that_the_hub_would_not_take(name: str, no_hub: None) -> None:
    assert "no Hub id" in refused(name)


def test_offline_and_not_cached(cache: Path, no_hub: None) -> None:
    assert "the program is offline; go online once" in refused(offline=True)
    with pytest.raises(ModelError, match="offline"):
        missing_bytes("org/model", offline=True)


def test_the_hub_cannot_be_reached(cache: Path, no_hub: None) -> None:
    text = refused("org/model@v1")
    assert text.startswith("org/model@v1 is not in the local cache and the Hub cannot be reached (")
    assert text.endswith("connect, or give a folder, or use -m builtin")


def test_an_unknown_model(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("org/other") == (
        "org/other does not exist on the Hub, or is private; check the name, or run `hf auth login`"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "a token that may read it (now that of $HF_TOKEN)" in refused("org/other")


def test_an_unknown_revision(fake_hub: FakeHub) -> None:
    assert refused("org/model@v9") == "org/model has no revision v9; check it on the Hub"


def test_a_gated_model(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.faults.append(Fault("/org/model/resolve", status=403, code="GatedRepo", times=9))
    assert refused() == (
        "org/model is gated: accept its terms on https://huggingface.co/org/model, then run "
        "`hf auth login`"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "with the account of the token of $HF_TOKEN, and wait" in refused()


def test_a_gated_listing(fake_hub: FakeHub) -> None:
    fake_hub.tokens["org/model"] = "hf_right"
    assert "is gated" in refused()


def test_a_token_that_is_not_accepted(fake_hub: FakeHub, cache: Path) -> None:
    (cache.parent / "token").write_text("hf_stale")
    wrong = "Invalid credentials in Authorization header"
    fake_hub.faults.append(Fault("/api/", status=401, message=wrong, times=9))
    text = refused()
    assert f"does not accept the token of {cache.parent / 'token'}" in text
    assert "hf_stale" not in text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("/api/", status=401), "does not exist on the Hub, or is private"),
        (Fault("/api/", status=403), "refuses access (403), and no token was given"),
        (Fault("/api/", status=403, message="Access to this resource is disabled."), "disabled"),
        (Fault("/api/", status=404), "answers 404"),
        (Fault("/api/", status=418, body=b"<html>\n" * 99), "answers 418"),
        (Fault("/api/", status=429, headers={"Retry-After": "7"}), "start again in 7 seconds"),
        (Fault("/api/", status=500), "answers 500"),
        (Fault("/api/", status=503), "try later"),
        (Fault("/api/", status=200, body=b"<html>log in</html>"), "does not answer as a Hub"),
        (Fault("/api/", status=200, body=b"[]"), "does not answer as a Hub"),
        (Fault("/api/", status=200, body=b'{"id": "org/model"}'), "does not answer as a Hub"),
        (Fault("/api/", status=200, body=b'{"id": "x", "sha": "../../x"}'), "does not answer"),
        (Fault("/tree/", status=200, body=b"null"), "does not answer as a Hub"),
        (Fault("/tree/", status=200, body=b'[{"type": "file"}]'), "does not answer as a Hub"),
        (Fault("/tree/", status=500), "answers 500"),
        (Fault("resolve", status=404, code="EntryNotFound"), "lists a file and does not have it"),
        (Fault("resolve", status=429), "asks to slow down"),
        (Fault("resolve", status=502), "answers 502"),
        (Fault("resolve", status=200, body=b"<html>"), "does not answer as a Hub"),
        (Fault("/cdn/", status=401), "https://localhost, to where the Hub sends for its files,"),
        (Fault("/cdn/", status=403), "https://localhost, to where the Hub sends for its files,"),
        (Fault("/cdn/", status=404), "https://localhost answers 404"),
        (Fault("/cdn/", status=500), "https://localhost answers 500"),
        (Fault("/cdn/", status=416), "answers 416"),
    ],
    ids=lambda value: f"{value.to}{value.status}" if isinstance(value, Fault) else None,
)
def test_refusals(
    fake_hub: FakeHub, fault: Fault, words: str, no_waiting: list[float], cache: Path
) -> None:
    fault.times = 99
    fake_hub.faults.append(fault)
    assert words in refused()
    assert not list(cache.rglob("*.safetensors"))


def test_a_hub_that_recovers_is_waited_for(fake_hub: FakeHub, no_waiting: list[float]) -> None:
    fake_hub.faults.append(Fault("resolve", status=503, times=3))
    assert resolve_model("org/model").is_dir()
    assert no_waiting


def test_an_endpoint_that_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("nonsense", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999"):
        point_at(url, monkeypatch)
        assert refused()


def test_a_cache_that_cannot_be_written(fake_hub: FakeHub, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert "could not be downloaded" in refused()


OFFLINE = """
import sys
def hook(event, args):
    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit('network')
sys.addaudithook(hook)
from retrolocal.errors import ModelError
from retrolocal.hub import resolve_model
assert 'huggingface_hub' not in sys.modules
try: resolve_model('org/model', offline={offline})
except ModelError as error: print(error)
"""


@pytest.mark.parametrize("variable", [False, True], ids=["argument", "HF_HUB_OFFLINE"])
def test_offline_opens_no_connection(tmp_path: Path, variable: bool) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    if variable:
        environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE.format(offline=not variable)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the program is offline" in done.stdout
