"""A decoder's quantised weights as one safetensors file, written tensor by tensor.

What is saved is what is in memory: the planes and scales of each quantised matrix under
`<weight>.planes<i>` and `<weight>.scales<i>`, every other parameter by its own name. Mapped again
nothing is copied or computed. The file appears under its name complete or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import WeightsError
from ..kernels.quantised import QuantisedMatrix
from .checkpoint import read_header
from .config import ModelConfig
from .decoder import Decoder
from .quantised import bits_of, install, matrices

FORMAT = 1
"""Raised whenever quantised matrices lie otherwise in memory or in the file."""
ALIGNMENT = 64
_NAMES = {
    torch.uint8: "U8",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
}


def write_quantised(decoder: Decoder, file: Path) -> None:
    """Writes the decoder's weights; raises OSError, and then leaves nothing behind."""
    tensors = dict(_tensors(decoder))
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    words = json.dumps(header).encode()
    words += b" " * (-(len(words) + 8) % ALIGNMENT)
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(struct.pack("<Q", len(words)) + words)
            for tensor in tensors.values():
                tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_quantised(
    file: Path, config: ModelConfig, quant: str, *, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """The decoder that was written, mapped; raises WeightsError when it is not that."""
    with torch.device("meta"):
        decoder = Decoder(config)
    try:
        read_header(file)
        with safe_open(file, framework="pt", device="cpu") as data:
            for parameter, value in list(decoder.named_parameters()):
                path, _, leaf = parameter.rpartition(".")
                module = decoder.get_submodule(path)
                bits = bits_of(parameter, module, quant)
                if bits is None:
                    stored = _of(data.get_tensor(parameter), value.shape, dtype, file)
                    kept = nn.Parameter(stored.to(device), requires_grad=False)
                    setattr(module, leaf, kept)
                    continue
                planes, scales = (
                    tuple(
                        data.get_tensor(f"{parameter}.{what}{number}").to(device)
                        for number in range(bits // 4)
                    )
                    for what in ("planes", "scales")
                )
                matrix = QuantisedMatrix(planes, scales)
                if matrix.shape != tuple(value.shape) or matrix.dtype != dtype:
                    raise WeightsError(f"{file}: {parameter} is not as it was written")
                install(decoder, parameter, matrix)
    except (SafetensorError, OSError) as problem:
        raise WeightsError(f"{file}: cannot be read ({problem})") from problem
    return decoder.eval()


def _of(tensor: Tensor, shape: torch.Size, dtype: torch.dtype, file: Path) -> Tensor:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise WeightsError(f"{file}: {list(tensor.shape)} {tensor.dtype} is not as it was written")
    return tensor


def _tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """All that has to be kept; large tensors first, so that every one of them is aligned."""
    for parameter, matrix in matrices(decoder):
        for what, parts in (("planes", matrix.planes), ("scales", matrix.scales)):
            yield from ((f"{parameter}.{what}{n}", part) for n, part in enumerate(parts))
    for parameter, value in sorted(decoder.named_parameters(), key=lambda item: -item[1].nbytes):
        yield parameter, value.detach()
