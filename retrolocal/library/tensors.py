"""Tensors to bytes and back; the only file of the library that imports torch."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from .tensor_file import TensorSpec

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """How a tensor is stored; raises ValueError for a dtype that has no name in safetensors."""
    if tensor.dtype not in _NAMES:
        raise ValueError(f"{name} has a dtype that is not stored: {tensor.dtype}")
    return TensorSpec(name, _NAMES[tensor.dtype], tuple(tensor.shape))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; a view of its memory where that is possible."""
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def mapped(mapping: mmap.mmap, data_start: int, spec: TensorSpec) -> Tensor:
    """The tensor that lies in a mapped file; it keeps the mapping alive."""
    dtype = _DTYPES[spec.dtype]
    if spec.bytes == 0:
        return torch.empty(spec.shape, dtype=dtype)
    count = spec.bytes // dtype.itemsize
    flat = torch.frombuffer(mapping, dtype=dtype, count=count, offset=data_start + spec.start)
    return flat.reshape(spec.shape)
