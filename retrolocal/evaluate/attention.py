"""`retrolocal eval attention`: two schemes against attention over everything, head by head.

Keys, values and queries are those of a real model that reads a real text (`record`). For every
layer the document is clustered as a wave cache does, and each recorded query answered by
RetroInfer as published ("paper"), by this program's own settings ("wave"), and by those with as
many tokens retrieved as make it read the bytes of the paper's ("wave_equal"). The last two also
with each type of store (`stores`): fewer bytes per token are more tokens for the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor

from ..config import DOCUMENT_STORE, StoreType, WaveConfig
from ..fidelity import Measured, Steady, build_index, compare
from ..ingest.extract import read_document
from ..kernels.codecs import Codec
from ..measurement import Progress, Result
from ..wave.index import WaveIndex
from .calibration import CLASSES, RESOLUTION, Samples, calibration, sharpness_class
from .options import AttentionOptions
from .record import STEPS, LayerRecord, RecordingSession

PAPER = WaveConfig(scheme="paper", index_type="bf16", store_type="bf16", outlier_fraction=0.0)
WAVE = WaveConfig(store_type=DOCUMENT_STORE)
STORES: tuple[StoreType, ...] = get_args(StoreType)
HELD = 0.9
"""Share of the true mass that counts tokens for sharpness."""
EQUAL = 0.01
"""Bytes that differ by less than this share are equal."""
PROBED = 16
"""Steps on which the retrieval that reads as many bytes is found."""
SMALLEST_ERROR = 1e-12
"""Below this an error of float32 arithmetic means nothing; keeps ratios finite."""
SCORES = 1 << 24
"""Attention scores that are sorted at once."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """One layer with one type of store."""

    token_bytes: int
    """Of a clustered token, all KV heads."""
    wave: Measured
    equal: Measured
    """`wave` itself where its bytes are the paper's."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """S steps of one layer."""

    number: int
    holding: Tensor
    """int64 [S, Hq]: tokens that hold `HELD` of the true mass."""
    tokens: int
    """Of the document."""
    steady_tokens: int
    """Of them, those that are always attended exactly."""
    dense_bytes: int
    """Keys and values of all of them, read by a dense step."""
    paper: Measured
    stores: dict[StoreType, StoreResult]
    """By store type."""

    @property
    def wave(self) -> Measured:
        return self.stores[WAVE.store_type].wave

    @property
    def equal(self) -> Measured:
        return self.stores[WAVE.store_type].equal

    def schemes(self) -> dict[str, Measured]:
        return {"paper": self.paper, "wave": self.wave, "wave_equal": self.equal}

    def samples(self) -> Samples:
        return Samples(
            layer=self.number,
            share=self.holding.double() / self.tokens,
            believed=self.wave.mass_estimated,
            real=1 - self.wave.mass_exact,
        )


def run(options: AttentionOptions, progress: Progress) -> Result:
    """Raises ModelError, DocumentError, UsageError, ContextError or MemoryLimitError, one line."""
    if options.plot is not None:
        from .plot import require_writable

        require_writable(options.plot)
    document = read_document(options.file)
    progress(f"loading {options.model}")
    with closing(RecordingSession.load(options.model, options.session)) as session:
        records = session.record(
            document,
            tokens=options.tokens,
            questions=options.questions,
            seed=options.seed,
            progress=progress,
        )
        config = session.model_config
        facts: dict[str, Any] = {
            "model": options.model,
            "file": document.name,
            "tokens": records[0].k.shape[1],
            "questions": options.questions,
            "steps": records[0].q.shape[0],
            "layers": [record.number for record in records],
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "dtype": str(session.dtype).removeprefix("torch."),
            "device": session.device.type,
            "threads": torch.get_num_threads(),
        }
    layers = []
    while records:
        progress(f"comparing: layer {records[0].number}, {len(records):,} to go")
        layers.append(compare_layer(records.pop(0)))
    result = {**facts, **summary(layers), "settings": _settings(options)}
    if options.plot is not None:
        from .plot import write_plot

        write_plot(options.plot, result, [layer.samples() for layer in layers])
        result["plot"] = str(options.plot)
    return result


def compare_layer(record: LayerRecord) -> LayerResult:
    """Clusters the layer's document and runs its steps through both schemes."""
    q, k, v = record.q, record.k, record.v
    index, steady = build_index(k, v, PAPER)
    paper = _compared(record, PAPER, index, steady)
    del index
    index, own = build_index(k, v, replace(WAVE, store_type="bf16"))
    assert torch.equal(own[0], steady[0]), "both schemes keep the same tokens out of the index"
    stores = {}
    for name in STORES:
        stored = _reading(index, WAVE, Codec.of(name, k.dtype))
        wave = _compared(record, WAVE, stored, own)
        stores[name] = StoreResult(
            token_bytes=stored.store_bytes // stored.segments.totals.tokens,
            wave=wave,
            equal=_at_equal_bytes(record, stored, own, wave=wave, paper=paper),
        )
    return LayerResult(
        number=record.number,
        steady_tokens=steady[0].shape[1],
        holding=torch.cat([holding(q, k, head) for head in range(k.shape[0])], dim=1),
        tokens=k.shape[1],
        dense_bytes=k.nbytes + v.nbytes,
        paper=paper,
        stores=stores,
    )


def _reading(index: WaveIndex, config: WaveConfig, codec: Codec | None = None) -> WaveIndex:
    """The same segments, read by `config`; recoded when there is a codec."""
    other = WaveIndex(config)
    for segment in index.segments:
        other.append(segment if codec is None else segment.recoded(codec))
    return other


def holding(q: Tensor, k: Tensor, head: int) -> Tensor:
    """Tokens that hold `HELD` of the mass: int64 [S, G] of the queries that share a KV head.

    q [S, Hq, D], k [Hkv, N, D].
    """
    steps, heads, dim = q.shape
    group = heads // k.shape[0]
    rows = q[:, head * group : (head + 1) * group].reshape(-1, dim).float() / dim**0.5
    keys = k[head].float().T
    counts = []
    for block in rows.split(max(1, SCORES // k.shape[1])):
        weights = torch.softmax(block @ keys, dim=1).sort(dim=1, descending=True).values
        counts.append((weights.double().cumsum(1) < HELD).sum(1) + 1)
    return torch.cat(counts).view(steps, group).cpu()


def summary(layers: Sequence[LayerResult]) -> Result:
    """Facts over all layers, `results` by head, `calibration` by layer and sharpness."""
    rows = [row for layer in layers for row in _rows(layer)]
    per_layer = [
        {
            "layer": layer.number,
            "dense": layer.dense_bytes,
            **{name: float(one.bytes.mean()) for name, one in layer.schemes().items()},
        }
        for layer in layers
    ]
    most = max(float((layer.wave.bytes / layer.paper.bytes).max()) for layer in layers)
    schemes = ("dense", "paper", "wave", "wave_equal")
    return {
        "sharpness": f"median over the steps of the tokens that hold {HELD:.0%} of the true mass",
        "steady_tokens": layers[0].steady_tokens,
        "bytes_per_step": {name: sum(row[name] for row in per_layer) for name in schemes},
        "bytes_per_step_by_layer": per_layer,
        "most_bytes_of_paper": most,
        "worst_error_ratio": max(row["error_ratio"] for row in rows),
        "worst_error_ratio_equal": max(row["error_ratio_equal"] for row in rows),
        "results": rows,
        "stores": _stores(layers),
        "calibration": calibration([layer.samples() for layer in layers]),
    }


def _stores(layers: Sequence[LayerResult]) -> list[dict[str, Any]]:
    """A row for each type of store with the program's own settings, then at the paper's bytes."""
    rows = []
    for at in ("wave", "wave_equal"):
        for name in STORES:
            own = [layer.stores[name] for layer in layers]
            found = [one.wave if at == "wave" else one.equal for one in own]
            errors = torch.cat([one.relative_error.flatten() for one in found])
            rows.append(
                {
                    "store_type": name,
                    "scheme": at,
                    "bytes_per_token": sum(one.token_bytes for one in own),
                    "bytes_per_step": sum(float(one.bytes.mean()) for one in found),
                    "retrieved_tokens": fmean(float(one.retrieved_tokens.mean()) for one in found),
                    "mass_exact": min(1.0, fmean(float(one.mass_exact.mean()) for one in found)),
                    "relative_error": float(errors.mean()),
                    "relative_error_median": float(errors.median()),
                    "relative_error_p95": float(errors.quantile(0.95)),
                }
            )
    return rows


def _compared(
    record: LayerRecord, config: WaveConfig, index: WaveIndex, steady: Steady, every: int = 1
) -> Measured:
    """Each `every`-th step; tensors on the CPU."""
    q = record.q[::every]
    found = compare(q, record.k, record.v, config, index=index, steady=steady)
    return Measured(**{name: getattr(found, name).cpu() for name in Measured.__slots__})


def _at_equal_bytes(
    record: LayerRecord, index: WaveIndex, steady: Steady, *, wave: Measured, paper: Measured
) -> Measured:
    """Retrieval up to as many tokens as make a step read the paper's bytes, whatever their mass.

    `index` is that of `WAVE`. The cap is found by the secant method on some of the steps.
    """
    if abs(float(wave.bytes.mean() / paper.bytes.mean()) - 1) < EQUAL:
        return wave

    def read(cap: float, every: int) -> Measured:
        config = replace(WAVE, epsilon=0.0, cap=cap)
        return _compared(record, config, _reading(index, config), steady, every)

    # Odd: not always the same step of each question.
    sparse = len(record.q) // PROBED | 1
    clustered = sum(segment.tokens for segment in index.segments)
    slope = float(index.store_bytes)
    cap, before = WAVE.cap, None
    for every in (sparse, sparse, sparse, 1, 1):
        measured = read(cap, every)
        found, target = float(measured.bytes.mean()), float(paper.bytes[::every].mean())
        if every == 1 and abs(found / target - 1) < EQUAL:
            break
        if before is not None and (cap - before[0]) * (found - before[1]) > 0:
            slope = (found - before[1]) / (cap - before[0])
        before = cap, found
        cap = min(1.0, max(1 / clustered, cap + (target - found) / slope))
    return measured


def _rows(layer: LayerResult) -> list[dict[str, Any]]:
    paper, wave, equal = layer.paper, layer.wave, layer.equal
    heads, kv_heads = wave.relative_error.shape[1], wave.retrieved_tokens.shape[1]
    rows = []
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        sharpness = float(layer.holding[:, head].double().median())
        figures = [_errors(one, head, kv_head) for one in (paper, wave, equal)]
        base = max(figures[0]["relative_error"], SMALLEST_ERROR)
        exact = figures[1]["mass_exact"]
        rows.append(
            {
                "layer": layer.number,
                "head": head,
                "kv_head": kv_head,
                "sharpness": sharpness,
                "class": sharpness_class(sharpness / layer.tokens),
                "paper": figures[0],
                "wave": figures[1]
                | {
                    "mass_estimated_true": 1 - exact,
                    "mass_estimated_believed": float(wave.mass_estimated[:, head].mean()),
                },
                "wave_equal": figures[2],
                "error_ratio": figures[1]["relative_error"] / base,
                "error_ratio_equal": figures[2]["relative_error"] / base,
            }
        )
    return rows


def _errors(measured: Measured, head: int, kv_head: int) -> dict[str, float]:
    errors = measured.relative_error[:, head]
    return {
        "relative_error": float(errors.mean()),
        "relative_error_median": float(errors.median()),
        "relative_error_p95": float(errors.quantile(0.95)),
        "mass_exact": min(1.0, float(measured.mass_exact[:, head].mean())),
        "retrieved_tokens": float(measured.retrieved_tokens[:, kv_head].mean()),
    }


def _settings(options: AttentionOptions) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "steps_per_question": STEPS,
        "resolution": RESOLUTION,
        "classes": {name: f"{HELD:.0%} of the mass in {range_}" for name, range_ in CLASSES},
        "paper": asdict(PAPER),
        "wave": asdict(WAVE),
        "wave_equal": "wave with epsilon 0 and the cap, layer by layer, that reads as many bytes",
    }
