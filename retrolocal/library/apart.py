"""What tells entries of one name apart: the few things in which they differ, in words."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from . import canonical
from .canonical import Json
from .identity import Difference
from .manifest import Manifest

DIGITS = 6
"""Of the hash of what is too long to be shown."""
OF_THE_MODEL = ("model", "rope", "tokenizer", "prefix")
"""Parts of an identity that differ where the weights do."""
SHORT = {"prefill.kind": "prefill"}
"""Names of what is not known by the last part of its own."""


def apart(manifests: Sequence[Manifest], *, beside: Collection[str] = ()) -> list[str]:
    """For each entry in which things it is unlike the others: `store int8, dtype float32`.

    Those named in `beside` are told elsewhere.
    """
    facts = [
        {name: value for name, value in _facts(manifest) if name not in beside}
        for manifest in manifests
    ]
    names = list(dict.fromkeys(name for one in facts for name in one))
    differing = [name for name in names if len({one[name] for one in facts if name in one}) > 1]
    if "weights" in differing:
        differing = [name for name in differing if name.partition(".")[0] not in OF_THE_MODEL]
    return [
        ", ".join(f"{_short(name)} {one[name]}" for name in differing if name in one)
        for one in facts
    ]


def telling(found: Sequence[Difference]) -> list[Difference]:
    """Those of two identities that say something: not all that comes with other weights."""
    if not any(one.of_models for one in found):
        return list(found)
    return [one for one in found if one.part not in OF_THE_MODEL]


def namesakes_apart(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Key -> in what an entry is unlike others of its name, where there are any.

    Kind, state and tokens are told elsewhere.
    """
    named: defaultdict[str, list[Manifest]] = defaultdict(list)
    for manifest in manifests:
        named[manifest.name].append(manifest)
    return {
        manifest.key: words
        for group in named.values()
        for manifest, words in zip(
            group, apart(group, beside=("kind", "state", "tokens")), strict=True
        )
    }


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    identity = manifest.identity
    weights = dict(identity.weights) if isinstance(identity.weights, dict) else {}
    quant = weights.pop("quant", "none")
    yield "kind", manifest.kind
    yield "state", "complete" if manifest.state == "complete" else "unfinished"
    yield "text", _hash([[one.digest, one.extractor] for one in manifest.documents])
    if manifest.state == "complete":
        yield "tokens", f"{manifest.tokens:,}"
    yield "weights", _hash(weights or identity.weights)
    yield "quant", str(quant).partition(",")[0]
    yield "dtype", identity.dtype
    yield "cache", "wave" if identity.clustered else "dense"
    for name in ("codec", "clustering", "prefill", "model", "rope"):
        yield from _flat(name, getattr(identity, name))
    for name in ("tokenizer", "prefix"):
        yield name, _hash(getattr(identity, name))


def _flat(name: str, value: Json) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flat(f"{name}.{key}", value[key])
    elif isinstance(value, str | int | float):
        yield name, str(value)
    elif value is not None:
        yield name, _hash(value)


def _short(name: str) -> str:
    return SHORT.get(name, name.rpartition(".")[2])


def _hash(value: Json) -> str:
    return hashlib.blake2b(canonical.encode(value), digest_size=16).hexdigest()[:DIGITS]
