"""PDFs that are large: 1,000 full pages, and more than 2 GiB of file."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retrolocal.ingest import read_document

PAGES = 1000
MAX_SECONDS = 3
MAX_BYTES = 200 << 20

_MEASURE = """
import json, re, resource, sys, time
from pathlib import Path
from retrolocal.ingest import read_document
start = time.perf_counter()
document = read_document(sys.argv[1])
seconds = time.perf_counter() - start
own, child = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
# The kernel's own count of this process: getrusage remembers the one it was forked from.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps({
    "pages": len(document.pages),
    "characters": len(document.text),
    "seconds": round(seconds, 2),
    "cpu_seconds": round(own.ru_utime + own.ru_stime + child.ru_utime + child.ru_stime, 2),
    "bytes": max(peak, child.ru_maxrss) * 1024,
}))
"""


def page(number: int, noise: random.Random, words: list[str]) -> str:
    lines = [" ".join(noise.choices(words, k=11)) for _ in range(45)]
    return "\n".join([f"A long book {number}", *lines, str(number)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_thousand_pages(
    write_pdf: Callable[..., Path], record_property: Callable[[str, object], None]
) -> None:
    noise = random.Random(0)
    words = ["the", "and", "of"] + [
        "".join(noise.choices("etaoinshrdlu", k=noise.randint(2, 9))) for _ in range(5000)
    ]
    path = write_pdf([page(number, noise, words) for number in range(1, PAGES + 1)])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout)
    record_property("figures", figures)
    assert figures["pages"] == PAGES
    assert figures["characters"] > 2_000_000
    # Work, not time on the clock: the machine may be busy.
    assert figures["cpu_seconds"] <= MAX_SECONDS, figures
    assert figures["bytes"] <= MAX_BYTES, figures


@pytest.mark.slow
def test_offsets_beyond_two_gib(write_pdf: Callable[..., Path]) -> None:
    path = write_pdf(["Hello there, this is a page of a large file."] * 3)
    head, table, tail = path.read_bytes().partition(b"xref\n0")
    moved = len(head) + (9 << 28)
    tail = tail.replace(b"startxref\n%d\n" % len(head), b"startxref\n%d\n" % moved)
    with path.open("wb") as file:
        file.write(head)
        file.seek(moved)
        file.write(table + tail)
    document = read_document(path)
    assert [document.text[p.start : p.end] for p in document.pages] == [
        "Hello there, this is a page of a large file."
    ] * 3


@pytest.mark.slow
def test_more_than_a_million_tokens_are_read_once(
    write_pdf: Callable[..., Path], material: Path, tmp_path: Path
) -> None:
    """`chat -f` twice: the second neither extracts, nor tokenises, nor reads."""
    from retrolocal.config import DOCUMENT_STORE, SamplingConfig, SessionConfig, WaveConfig
    from retrolocal.library import Library
    from retrolocal.session import AskOptions, Reply, Session
    from retrolocal.shelf import Keeping, document_of

    lines = (material / "texts" / "kjv-bible.txt").read_text("utf-8").split("\n")
    lines = [line.encode("ascii", "ignore").decode() for line in lines if line.strip()][:45_000]
    pages = ["\n".join(lines[start : start + 45]) for start in range(0, len(lines), 45)]
    path, library = write_pdf(pages), Library(tmp_path / "library")
    config = SessionConfig(wave=WaveConfig(store_type=DOCUMENT_STORE))
    options = AskOptions(max_new_tokens=8, sampling=SamplingConfig(temperature=0.0))
    replies = []
    for _ in range(2):
        document = document_of(path, library=library)
        keeping = Keeping(library=library, required=True)
        with Session.open("builtin", config, documents=[document], keeping=keeping) as session:
            question = " ".join(document.text[500_000:500_080].split())
            *_, reply = session.ask(question, options)
            assert isinstance(reply, Reply)
            replies.append(reply)
    first, second = replies
    assert first.prefill_tokens > 1_000_000
    assert second.prefill_tokens < 100
    assert second.text == first.text
