"""Text to token ids and back, by the tokenizer.json of a model folder.

Encoding is the `tokenizers` library's and equals `transformers`. Decoding is defined on bytes: a
token stands for some bytes, a text is the bytes of its tokens read as UTF-8 with each maximal
invalid part replaced by U+FFFD. `StreamDecoder` is the one decoder, so that a reply read piece by
piece and a reply read at once are the same text. Knows no template and no model.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken

from .errors import TokenizerError
from .files import one_line, parse_object, read_limited, stand_in

MAX_TOKENIZER_BYTES = 256 << 20

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class Tokenizer:
    """A model's tokenizer. Immutable after opening; any thread may use it.

    Encoding releases the interpreter lock, so a long document does not stop other threads.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: dict[str, str] | None = None
    ) -> None:
        """`special_tokens` maps names such as "bos_token" to tokens of the vocabulary.

        Raises TokenizerError when the decoder of `backend` is of an unknown kind.
        """
        self.special_tokens: dict[str, str] = dict(special_tokens or {})
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _mark_special(backend, self.special_tokens.values())
        self._plain = _plain_twin(backend)
        self._special_ids = frozenset(
            token_id for token_id, t in backend.get_added_tokens_decoder().items() if t.special
        )
        self._to_bytes, self._strip = _read_decoder(_state(backend.decoder))
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json and special_tokens_map.json of `folder`.

        Only the first is required. Raises TokenizerError when a file is missing, damaged or larger
        than a tokenizer can be.
        """
        path = folder / "tokenizer.json"
        data = read_limited(path, TokenizerError, MAX_TOKENIZER_BYTES)
        if data is None:
            raise TokenizerError(f"{path} does not exist; the model folder is incomplete")
        other = stand_in(data)
        if other is not None:
            raise TokenizerError(f"{path} is {other}")
        try:
            backend = tokenizers.Tokenizer.from_buffer(data)
        except ValueError as error:
            raise TokenizerError(f"{path} is damaged ({one_line(error)})") from error
        try:
            return cls(backend, _special_tokens(folder))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included (a model may have more rows than this)."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    @property
    def end_ids(self) -> frozenset[int]:
        """Of `eos_token`, if there is one."""
        number = None if self.eos_token is None else self.token_id(self.eos_token)
        return frozenset() if number is None else frozenset({number})

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of `text`; with `special`, framed as the model expects (usually a leading bos)."""
        return _encode(self._backend, text, special)

    def encode_raw(self, text: str, *, parse_special: bool) -> list[int]:
        """Ids of `text` and nothing else.

        Without `parse_special`, text that spells a special token is ordinary text.
        """
        return _encode(self._backend if parse_special else self._plain, text, False)

    def encode_with_offsets(self, text: str) -> tuple[list[int], NDArray[np.uint32]]:
        """Ids as of `encode_raw` without special tokens, and the characters each stands for.

        The offsets [n, 2] are start and end in `text`; starts never decrease. A character that
        takes several tokens is in the span of each. Raises TokenizerError for lone surrogates.
        """
        try:
            found = self._plain.encode_batch([text], add_special_tokens=False)[0]
        except TypeError as error:
            raise TokenizerError(
                "the text holds lone surrogates; it is not Unicode text"
            ) from error
        # One by one: `found.offsets` would hold all pairs at once, some 100 bytes each.
        place = cast("Callable[[int], tuple[int, int]]", found.token_to_chars)
        places = chain.from_iterable(map(place, range(len(found))))
        offsets = np.fromiter(places, np.uint32, 2 * len(found)).reshape(-1, 2)
        return found.ids, offsets

    def decode(
        self, ids: Iterable[int], *, skip_special: bool = True, continuing: bool = False
    ) -> str:
        """The text of `ids`; `continuing` as in StreamDecoder."""
        decoder = StreamDecoder(self, skip_special=skip_special, continuing=continuing)
        pieces = [decoder.push(token_id) for token_id in ids]
        return "".join(pieces) + decoder.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for an id outside the vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            found = self._bytes[token_id] = b"" if token is None else self._to_bytes(token)
        return found

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    @property
    def leading_strip(self) -> tuple[bytes, int]:
        """What is taken off the start of a text: a byte string, and how often at most."""
        return self._strip


class StreamDecoder:
    """Turns token ids into text as they come; one stream, one thread.

    At most the 3 bytes of an unfinished character wait for the next token. The cost of a token does
    not depend on the length of the reply.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, continuing: bool = False
    ) -> None:
        """`continuing`: the tokens follow a text already shown, so the leading space that some
        tokenizers put before every text belongs to the text and stays."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip, self._strip_left = tokenizer.leading_strip
        if continuing:
            self._strip_left = 0

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; may be empty."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        while self._strip_left and data:
            if not data.startswith(self._strip):
                self._strip_left = 0
                break
            data = data[len(self._strip) :]
            self._strip_left -= 1
        return self._decoder.decode(data)

    def finish(self) -> str:
        """The rest: U+FFFD if the reply stopped inside a character. Ends the stream."""
        return self._decoder.decode(b"", final=True)


def _encode(backend: tokenizers.Tokenizer, text: str, special: bool) -> list[int]:
    # The batch call computes no offsets and releases the interpreter lock; `encode` does neither.
    try:
        return backend.encode_batch_fast([text], add_special_tokens=special)[0].ids
    except TypeError:
        # A lone surrogate, as in a file name or a console line that is not UTF-8.
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return backend.encode_batch_fast([text], add_special_tokens=special)[0].ids


def _mark_special(backend: tokenizers.Tokenizer, tokens: Iterable[str]) -> None:
    """Named tokens are special even where tokenizer.json forgot to say so, as in transformers.

    Names of tokens outside the vocabulary are left alone: they would get ids the model lacks.
    """
    added = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    forgotten = {t for t in tokens if t not in added and backend.token_to_id(t) is not None}
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in sorted(forgotten)]
    )


def _plain_twin(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, deaf to special tokens. It shares the vocabulary, so it costs nothing;
    switching the one object to and fro would not be safe while another thread encodes."""
    twin = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        twin.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        twin.pre_tokenizer = backend.pre_tokenizer
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        (twin.add_special_tokens if token.special else twin.add_tokens)([token])
    twin.encode_special_tokens = True
    return twin


def _state(decoder: Any) -> dict[str, Any] | None:
    """A decoder as tokenizer.json spells it (`to_str` would write out the whole vocabulary)."""
    state: dict[str, Any] | None = None if decoder is None else json.loads(decoder.__getstate__())
    return state


def _read_decoder(
    decoder: dict[str, Any] | None,
) -> tuple[Callable[[str], bytes], tuple[bytes, int]]:
    """The decoder of tokenizer.json as (token -> bytes, what to strip from the start)."""
    if decoder is None:
        return (lambda token: b" " + token.encode()), (b" ", 1)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level, (b"", 0)
    replaced: list[tuple[str, str]] = []
    while steps and steps[0]["type"] == "Replace" and "String" in steps[0]["pattern"]:
        replaced.append((steps[0]["pattern"]["String"], steps[0]["content"]))
        steps = steps[1:]
    kinds = [step["type"] for step in steps]
    strip = (b"", 0)
    if kinds[-2:] == ["Fuse", "Strip"] and steps[-1]["stop"] == 0:
        strip = (steps[-1]["content"].encode(), steps[-1]["start"])
        kinds.pop()
    if kinds in ([], ["Fuse"], ["ByteFallback"], ["ByteFallback", "Fuse"]):
        return _replacing(replaced, "ByteFallback" in kinds), strip
    raise TokenizerError(f"the decoder {' + '.join(kinds) or decoder['type']} is not supported")


def _replacing(pairs: Sequence[tuple[str, str]], byte_tokens: bool) -> Callable[[str], bytes]:
    def to_bytes(token: str) -> bytes:
        for old, new in pairs:
            token = token.replace(old, new)
        if byte_tokens and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        return token.encode()

    return to_bytes


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins: Latin-1's visible characters stand for themselves, the other 68
    bytes for the characters from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in visible]
    return table | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_characters()


_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which no text that a tokenizer takes can hold."""


def _special_tokens(folder: Path) -> dict[str, str]:
    """Names such as "bos_token" to tokens; tokenizer_config.json has the last word."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        for key, value in _settings(path).items():
            if key.removesuffix("_token") in _NAMED and key.endswith("_token"):
                token = value.get("content") if isinstance(value, dict) else value
                if token is None:
                    found.pop(key, None)
                elif isinstance(token, str) and not _SURROGATE.search(token):
                    found[key] = token
                else:
                    raise TokenizerError(f"{path}: {key} is {value!r:.60}; it must be a string")
    return found


def _settings(path: Path) -> dict[str, Any]:
    data = read_limited(path, TokenizerError)
    return {} if data is None else parse_object(path, data, TokenizerError)
