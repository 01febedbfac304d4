"""What the built-in model is taught with: text, a tokenizer, and lessons made of both.

The text is the standard library of the running Python, sources and documentation; every tenth
piece is held out. A lesson is a document of several kinds of pieces, then quotations from it.
Knows no model.
"""

from __future__ import annotations

import pydoc_data.topics
import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 2048
BOS, END, QUOTE = "<|begin|>", "<|end|>", "<|quote|>"


def training_text(*, held_out: bool) -> list[str]:
    """Documentation topics and sources of the standard library; every tenth is held out."""
    texts = list(pydoc_data.topics.topics.values())
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0] in {"site-packages", "test", "lib2to3", "idlelib"} or "tests" in parts:
            continue
        text = path.read_text("utf-8", errors="ignore")
        if 2_000 < len(text) < 400_000:
            texts.append(text)
    return [text for number, text in enumerate(texts) if (number % 10 == 9) == held_out]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; prose (the documentation) weighs as much as code.

    White space is a token of its own, so a passage has the same tokens, one by one, wherever its
    lines are broken.
    """
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\s+|\p{L}+|\p{N}{1,3}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[BOS, END, QUOTE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prose = list(pydoc_data.topics.topics.values())
    code = "".join(texts)[: sum(map(len, prose)) * 2]
    tokenizer.train_from_iterator([*prose, *prose, *prose, *prose, code], trainer)
    return tokenizer


@dataclass
class Lesson:
    """One document with the questions after it. `source[i]` is the position that holds what must
    follow question token i, or -1 where nothing is to be learnt."""

    tokens: NDArray[np.int64]
    source: NDArray[np.int64]


class Teacher:
    """Makes lessons: a document of several kinds of pieces, then quotations from it, each with
    its continuation."""

    KINDS = (0.25, 0.35, 0.1, 0.1, 0.08, 0.12)
    """Shares of: text as it is, text wrapped anew, random words, random tokens, random tokens of
    a small vocabulary, an altered copy of what stands before."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tokenizer = tokenizer
        marks = (tokenizer.token_to_id(QUOTE), tokenizer.token_to_id(END))
        self.quote_mark, self.end_mark = (np.array([mark], dtype=np.int64) for mark in marks)
        encoded = tokenizer.encode_batch_fast(texts)
        self.corpus = np.concatenate([np.array(e.ids, dtype=np.int64) for e in encoded])
        self.flat = " ".join(" ".join(texts).split())

    def lesson(self, document_tokens: int, question_tokens: int) -> Lesson:
        document, is_text = self._document(document_tokens)
        parts, sources, total = [document], [], 0
        while total < question_tokens:
            ids, source = self._question(document, is_text)
            parts.append(ids)
            sources.append(source)
            total += len(ids)
        return Lesson(np.concatenate(parts), np.concatenate(sources))

    def _document(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        rng = self.rng
        document = np.empty(length, dtype=np.int64)
        is_text = np.zeros(length, dtype=np.bool_)
        filled = 0
        while filled < length:
            kind = rng.choice(len(self.KINDS), p=self.KINDS)
            piece = self._piece(kind, document[:filled])
            piece = piece[: length - filled]
            document[filled : filled + len(piece)] = piece
            is_text[filled : filled + len(piece)] = kind <= 2
            filled += len(piece)
        return document, is_text

    def _piece(self, kind: int, before: NDArray[np.int64]) -> NDArray[np.int64]:
        rng = self.rng
        size = int(rng.integers(40, 400))
        if kind == 0:
            start = int(rng.integers(0, len(self.corpus) - 1000))
            return self.corpus[start : start + size * 2]
        if kind == 1:
            start = int(rng.integers(0, len(self.flat) - 5000))
            return self._wrapped(self.flat[start : start + size * 6])
        if kind == 2:
            lengths = rng.integers(1, 10, size // 2)
            letters = rng.choice(list("eeeettaaoinshrdlucmfwypvbgkqjxz"), lengths.sum())
            words = np.split(letters, lengths.cumsum()[:-1])
            return self._wrapped(" ".join("".join(word) for word in words))
        if kind == 3 or len(before) <= size:
            return rng.integers(3, VOCAB, size)
        if kind == 4:
            return rng.choice(rng.integers(3, VOCAB, int(rng.integers(12, 200))), size)
        start = int(rng.integers(0, len(before) - size))
        piece = before[start : start + size].copy()
        altered = rng.random(size) < rng.uniform(0.03, 0.15)
        piece[altered] = rng.integers(3, VOCAB, int(altered.sum()))
        return piece

    def _wrapped(self, line: str) -> NDArray[np.int64]:
        text = textwrap.fill(line, int(self.rng.integers(30, 100)), break_long_words=False)
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def _question(
        self, document: NDArray[np.int64], is_text: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rng = self.rng
        quoted, copied = int(rng.integers(8, 40)), int(rng.integers(12, 32))
        start = int(rng.integers(0, len(document) - quoted - copied))
        split, end = start + quoted, start + quoted + copied
        quote = document[start:split]
        source = np.arange(start + 1, split + 1)
        source[:8] = -1
        if is_text[start:end].all() and rng.random() < 0.7:
            quote = self._as_typed(quote)
            source = np.full(len(quote), -1)
            source[-1] = split
        ids = np.concatenate((self.quote_mark, quote, document[split:end], self.end_mark))
        source = np.concatenate(([-1], source, np.arange(split + 1, end), [-1, -1]))
        return ids, source

    def _as_typed(self, quote: NDArray[np.int64]) -> NDArray[np.int64]:
        """The quotation as a person types it: one line, single spaces."""
        text = " ".join(self.tokenizer.decode(quote.tolist()).split())
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids or quote.tolist(), dtype=np.int64)
