"""A model with dual chunk attention in a session: many chunks long, kept, gone on with."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from retrolocal.config import SamplingConfig, SessionConfig, WaveConfig
from retrolocal.errors import ModelError
from retrolocal.evaluate.record import RecordingSession
from retrolocal.library import Library
from retrolocal.models.decoder import Decoder
from retrolocal.session import AskOptions, Reply, Session
from retrolocal.shelf import Keeping, document_of

WAVE = WaveConfig(segment_tokens=256, growth_tokens=64, sink_tokens=4, window_tokens=16, least=64)
CONFIG = SessionConfig(cache="wave", batch_size=100, wave=WAVE)
OPTIONS = AskOptions(sampling=SamplingConfig(temperature=0.0), max_new_tokens=30)
SECTION = {"chunk_size": 700, "local_size": 188, "original_max_position_embeddings": 700}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> str:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"dual_chunk_attention_config": SECTION})
    )
    return str(folder)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path, words = tmp_path / "book.txt", ["whale", "ship", "sea", "captain", "harpoon", "log"]
    path.write_text(" ".join(random.Random(1).choices(words, k=420)), encoding="utf-8")
    return path


def ask(model: str, book: Path, config: SessionConfig, keeping: Keeping | None = None) -> Reply:
    documents = [document_of(book)]
    with Session.open(model, config, documents=documents, keeping=keeping) as session:
        *_, reply = session.ask("who is it?", OPTIONS)
    assert isinstance(reply, Reply)
    assert reply.prompt_tokens > 4 * 512
    return reply


def test_all_caches_say_the_same(model: str, book: Path) -> None:
    everything = replace(WAVE, budget=1.0)
    texts = {
        ask(model, book, config).text
        for config in (
            SessionConfig(cache="dense"),
            SessionConfig(cache="wave", wave=everything),
            SessionConfig(cache="wave", wave=everything, batch_size=77),
        )
    }
    assert len(texts) == 1


def test_only_a_question_wants_logits(
    model: str, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a long text each would cost as much as attending to everything before it."""
    wanted, forward = [], Decoder.forward

    def counted(self: Decoder, *args: Any) -> Tensor:
        wanted.append(args[3])
        return forward(self, *args)

    monkeypatch.setattr(Decoder, "forward", counted)
    reply = ask(model, book, CONFIG)
    assert sum(wanted) == reply.generated_tokens + (reply.stop_reason == "eos")
    assert wanted[:20] == [0] * 20


def test_what_was_read_is_kept_and_gone_on_with(model: str, book: Path, tmp_path: Path) -> None:
    whole, parts = Library(tmp_path / "whole"), Library(tmp_path / "parts")
    plain = ask(model, book, CONFIG)
    expected = ask(model, book, CONFIG, Keeping(library=whole, required=True))
    again = ask(model, book, CONFIG, Keeping(library=whole, required=True))
    keeping = Keeping(library=parts, required=True)
    with Session.open(model, CONFIG, documents=[document_of(book)], keeping=keeping) as session:
        for progress in session.read_documents():
            if progress.done >= 1000:
                break
    found = ask(model, book, CONFIG, keeping)
    assert found.prefill_tokens <= expected.prefill_tokens - 1000
    assert again.prefill_tokens < 100
    assert plain.text == expected.text == again.text == found.text
    assert plain.sources == expected.sources == again.sources
    assert plain.sources


def test_recording_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="dual chunk attention"):
        RecordingSession.load(model, CONFIG)
