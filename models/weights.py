"""Weights from safetensors files into a `Decoder`, tensor by tensor.

The decoder is built without storage and each parameter is made straight from the mapped file, so
no second copy of the model is ever in memory; unconverted CPU weights stay in the page cache.
Names, shapes and dtypes are compared with the configuration before a byte of data is read, and a
weight that is NaN or infinite is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import WeightsError
from ..kernels.quantised import quantise
from .checkpoint import DTYPE_BYTES, StoredTensor, checkpoint_bytes, read_checkpoint
from .config import ModelConfig
from .decoder import Decoder
from .families import FAMILIES, Family
from .json_reader import JsonReader, listed, shown
from .quantised import bits_of, install

__all__ = ["checkpoint_bytes", "checkpoint_dtype", "declared_dtype", "load_decoder"]

DECLARED = ("float32", "bfloat16", "float16")
"""Dtypes of weights, as config.json names them."""
_TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a parameter is: so many rows of a tensor of the checkpoint, from one of them on."""

    tensor: StoredTensor
    first: int
    rows: int

    @property
    def bytes(self) -> int:
        return self.tensor.bytes * self.rows // self.tensor.shape[0]


def load_decoder(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    quant: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """The decoder of `config` with the weights in `folder`, none of which requires a gradient.

    `dtype` None keeps the dtype of most of the checkpoint's bytes; with `quant` int8 or int4
    matrices are quantised one by one as they are read. `progress(done, total)` is
    called with bytes of the checkpoint, first with 0. Raises WeightsError.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    sources = _matched(folder, config, decoder)
    dtype = dtype or _common_dtype(sources.values())
    total = sum(source.bytes for source in sources.values())
    done = 0
    if progress is not None:
        progress(done, total)
    in_order = sorted(sources.items(), key=lambda item: _place_on_disk(item[1]))
    for file, group in groupby(in_order, key=lambda item: item[1].tensor.file):
        try:
            with safe_open(file, framework="pt", device="cpu") as data:
                for parameter, source in group:
                    name = source.tensor.name
                    rows = data.get_tensor(name)[source.first : source.first + source.rows]
                    value = _converted(rows, name, file, dtype, device)
                    _place(decoder, parameter, value, quant)
                    done += source.bytes
                    if progress is not None:
                        progress(done, total)
        except (SafetensorError, OSError) as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise WeightsError(f"{file}: cannot be read ({reason}); download it again") from problem
    return decoder.eval()


def checkpoint_dtype(folder: Path, config: ModelConfig) -> torch.dtype:
    """The dtype of most bytes of the weights that `config` needs; reads headers only."""
    with torch.device("meta"):
        decoder = Decoder(config)
    return _common_dtype(_matched(folder, config, decoder).values())


def declared_dtype(reader: JsonReader) -> torch.dtype:
    """Of config.json; float32 where it says nothing, as in transformers."""
    key = "dtype" if reader.has("dtype") else "torch_dtype"
    name = reader.text(key) if reader.has(key) else "float32"
    if name not in DECLARED:
        raise reader.mistyped(key, f"one of {', '.join(DECLARED)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _place_on_disk(source: _Source) -> tuple[Path, int, int]:
    return source.tensor.file, source.tensor.start, source.first


def _matched(folder: Path, config: ModelConfig, decoder: Decoder) -> dict[str, _Source]:
    """Parameter -> where it is; raises WeightsError unless tensors and parameters fit."""
    family = FAMILIES[config.family]
    stored = {
        usual: tensor
        for name, tensor in read_checkpoint(folder).items()
        if (usual := family.usual_name(name)) is not None
    }
    if config.tie_embeddings:
        _share_tied(stored, family)
    shapes = {name: tuple(value.shape) for name, value in decoder.named_parameters()}
    names = {family.checkpoint_name(parameter): parameter for parameter in shapes}
    held = {name: family.parameters_in(parameter) for name, parameter in names.items()}
    wanted = {name: _joined(shapes[part] for part in parts) for name, parts in held.items()}
    _refuse_dtypes(folder, {name: stored[name] for name in names if name in stored})
    missing = [name for name in names if name not in stored]
    unexpected = [name for name in stored if name not in names and not _harmless(name)]
    misshaped = [
        f"{name} is {list(stored[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    problems = [
        f"{len(found)} {what} ({listed(found)})"
        for found, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (misshaped, "of another shape"),
        )
        if found
    ]
    if problems:
        raise WeightsError(
            f"{folder}: the weights do not fit config.json: {'; '.join(problems)}; "
            "take both from the same model"
        )
    sources = {}
    for name, parts in held.items():
        first = 0
        for part in parts:
            sources[part] = _Source(stored[name], first, shapes[part][0])
            first += shapes[part][0]
    return sources


def _joined(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of tensors one below another."""
    shapes = list(shapes)
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _share_tied(stored: dict[str, StoredTensor], family: Family) -> None:
    """Some tied checkpoints hold the shared matrix under the name of the output matrix only."""
    embedding = family.checkpoint_name("embedding.weight")
    head = family.checkpoint_name("head.weight")
    if embedding not in stored and head in stored:
        stored[embedding] = stored[head]


def _harmless(name: str) -> bool:
    """Left in some checkpoints though the configuration or the tied embedding already says it."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _refuse_dtypes(folder: Path, needed: Mapping[str, StoredTensor]) -> None:
    for name, tensor in needed.items():
        if tensor.dtype not in DTYPE_BYTES:
            raise WeightsError(
                f"{folder}: {name} has dtype {shown(tensor.dtype)}; supported are "
                f"{', '.join(DTYPE_BYTES)}: choose an unquantised version of this model"
            )


def _common_dtype(sources: Iterable[_Source]) -> torch.dtype:
    counts: Counter[str] = Counter()
    for source in sources:
        counts[source.tensor.dtype] += source.bytes
    return _TORCH_DTYPES[counts.most_common(1)[0][0]]


def _converted(
    stored: Tensor, name: str, file: Path, dtype: torch.dtype, device: torch.device
) -> Tensor:
    value = stored.to(device=device, dtype=dtype)
    if _finite(value):
        return value
    if stored.dtype != dtype and _finite(stored):
        raise WeightsError(
            f"{file}: {name} does not fit into {str(dtype).removeprefix('torch.')}: its largest "
            f"weight is {float(stored.abs().max()):g}; use bfloat16 or float32"
        )
    raise WeightsError(f"{file}: {name} holds NaN or infinite weights; download it again")


def _finite(value: Tensor) -> bool:
    """Takes no memory of the order of the tensor, unlike isfinite."""
    low, high = torch.aminmax(value)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _place(decoder: Decoder, parameter: str, value: Tensor, quant: str) -> None:
    path, _, leaf = parameter.rpartition(".")
    module = decoder.get_submodule(path)
    bits = bits_of(parameter, module, quant)
    if bits is not None:
        install(decoder, parameter, quantise(value, bits).to(value.dtype))
        return
    setattr(module, leaf, nn.Parameter(value, requires_grad=False))
