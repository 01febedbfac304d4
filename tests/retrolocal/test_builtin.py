"""The built-in model quotes text it has never seen, dense and wave, near and far.

The bars are those of PERFORMANCE.md; run with `pytest -m slow -s` this file prints the table.
"""

from __future__ import annotations

import random
import re
import textwrap
from pathlib import Path

import pytest
import torch

from retrolocal.ingest.extract import read_document
from retrolocal.models.builtin_lessons import BOS, training_text
from retrolocal.paths import builtin_model
from retrolocal.session import AskOptions, Reply, Session, load

LENGTHS = [(512, 0.95), (4096, 0.95), (32_768, 0.95), (131_072, 0.90)]
LOST = {131_072: 0.05}
"""What the index may lose of what dense attention quotes; 0.02 elsewhere."""


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own_text() -> str:
    """The documents of the project; training sees the standard library only."""
    names = ("ARCHITECTURE.md", "README.md", "LICENSE", "CHANGELOG.md")
    return "\n\n".join((ROOT / name).read_text("utf-8") for name in names)


@pytest.fixture(scope="module")
def shuffled_text() -> str:
    """Real words of held-out text in an order that nobody ever wrote, wrapped as a book is."""
    words = " ".join(training_text(held_out=True)).split()
    random.Random(0).shuffle(words)
    return "\n".join(textwrap.wrap(" ".join(words[:150_000]), 72))


def made_up(words: int) -> str:
    """Nothing of this can have been learnt by heart."""
    rng = random.Random(3)
    each = ("".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(words))
    return " ".join(each)


def cut(session: Session, text: str, tokens: int) -> str:
    """The beginning of `text` that has about so many tokens, ending at a line."""
    size = len(session.tokenizer.encode(text[: 8 * tokens], special=False))
    return text[: int(8 * tokens * tokens / size)].rpartition("\n")[0]


def quotations(text: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(words as a person types them, what follows), from places whose words occur once."""
    rng = random.Random(seed)
    flat = " ".join(text.split())
    words = list(re.finditer(r"\S+", text))
    found: list[tuple[str, str]] = []
    while len(found) < count:
        first, length = rng.randrange(len(words) - 60), rng.randint(8, 16)
        quote = " ".join(match.group() for match in words[first : first + length])
        if flat.count(quote) == 1:
            end = words[first + length - 1].end()
            found.append((quote, text[end : end + 200]))
    return found


def share_right(session: Session, path: Path, asked: list[tuple[str, str]]) -> float:
    """Share of quotations whose next eight tokens are exactly those of the text."""
    right = 0
    for quote, following in asked:
        said = session.generate(quote, [path], max_new_tokens=8, temperature=0)
        right += following.startswith(said)
    return right / len(asked)


def check(tokens: int, bar: float, questions: int, text: str, path: Path) -> None:
    wave, dense = load("builtin", cache="wave"), load("builtin", cache="dense")
    path.write_text(cut(wave, text, tokens))
    asked = quotations(path.read_text(), questions, seed=tokens)
    shares = {"dense": share_right(dense, path, asked), "wave": share_right(wave, path, asked)}
    print(f"{tokens:7,} tokens: dense {shares['dense']:.3f} wave {shares['wave']:.3f}")  # noqa: T201
    assert shares["dense"] >= bar
    assert shares["wave"] >= bar
    assert shares["wave"] >= shares["dense"] - LOST.get(tokens, 0.02)


@pytest.mark.parametrize(("tokens", "bar"), LENGTHS[:2], ids=lambda v: str(v))
def test_quotes_near(tokens: int, bar: float, own_text: str, tmp_path: Path) -> None:
    check(tokens, bar, 30, own_text, tmp_path / "text.txt")


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "bar"), LENGTHS, ids=lambda v: str(v))
def test_quotes_far(tokens: int, bar: float, shuffled_text: str, tmp_path: Path) -> None:
    check(tokens, bar, 300, shuffled_text, tmp_path / "text.txt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["war-and-peace_pg2600.txt", "kjv-bible.txt"])
@pytest.mark.parametrize(("tokens", "bar"), LENGTHS, ids=lambda v: str(v))
def test_quotes_books(name: str, tokens: int, bar: float, material: Path, tmp_path: Path) -> None:
    text = (material / "texts" / name).read_text("utf-8")
    check(tokens, bar, 300, text[len(text) // 3 :], tmp_path / "text.txt")


@pytest.fixture
def session() -> Session:
    return load("builtin")


def test_quotes_random_words(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "random.txt"
    path.write_text(made_up(1500))
    asked = quotations(path.read_text(), 30, seed=1)
    assert share_right(session, path, asked) >= 0.9


def test_a_conversation_quotes_again_and_again(tmp_path: Path) -> None:
    path, text = tmp_path / "text.txt", made_up(9000)
    path.write_text(text)
    with Session.open("builtin", documents=[read_document(path)]) as chat:
        right = 0
        for quote, following in quotations(text, 12, seed=5):
            *_, last = chat.ask(quote, AskOptions(max_new_tokens=8))
            assert isinstance(last, Reply)
            right += following.startswith(last.text)
    assert right >= 11


def test_what_ships() -> None:
    folder = builtin_model()
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(files.values()) <= 16 << 20
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(files)


def test_it_is_small_and_reaches_far(session: Session) -> None:
    config = session.model_config
    assert config.kv_heads <= 2
    assert config.head_dim == 64
    assert config.max_positions >= 4_000_000
    assert session.tokenizer.bos_token == BOS


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_it_too(session: Session) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(builtin_model(), dtype=torch.float32)
    ids = session.tokenizer.encode("Some text, then the same: Some text, then", special=False) * 3
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    own = load("builtin", dtype="float32").logits(ids)
    torch.testing.assert_close(own, expected, atol=1e-3, rtol=1e-3)
