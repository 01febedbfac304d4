"""Compiling for the CPU at hand with numba: the decorator, and what numba itself lacks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic, overload

from .kept_numba import kept_code
from .part_numba import PartCompiler, UncountedCompiler

KINDS = {
    torch.int8: np.empty(0, np.int8),
    torch.uint8: np.empty(0, np.uint8),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
    torch.float32: np.empty(0, np.float32),
}
"""What an element of a dtype looks like to compiled code: see `to_float`."""


# No NaN or infinity promises: empty clusters weigh -inf.
_OPTIONS = {
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"},
}


def jit(*, entry: bool = False, allocates: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with fast mathematics.

    Only an `entry` can be called from Python. It is kept in the user's cache directory, with the
    others inside. These count no references, unless one makes arrays (`allocates`).
    """
    options = {"no_cpython_wrapper": not entry, "no_cfunc_wrapper": True, "nogil": True}

    def made(function: Callable[..., Any]) -> Any:
        if not entry:
            part = PartCompiler if allocates else UncountedCompiler
            return njit(**_OPTIONS, **options, pipeline_class=part)(function)
        dispatcher = njit(**_OPTIONS, **options)(function)
        dispatcher._cache = kept_code(function)
        return dispatcher

    return made


def chosen(function: Callable[..., Any]) -> Any:
    """`numba.extending.overload` by what is compiled as `jit` does."""
    options = {**_OPTIONS, "nopython": True, "nogil": True, "pipeline_class": UncountedCompiler}
    return overload(function, jit_options=options)


@functools.cache
def task(function: Callable[[int, int], None]) -> Any:
    """`function(words, member)` for others to call at its `address`, compiled as by `jit`.

    It must not raise. The result is kept: the address is good as long as the process.
    """
    made = CFunc(function, normalize_signature("void(int64, int64)"), locals={}, options=_OPTIONS)
    made._cache = kept_code(function)
    made.compile()
    return made


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An integer address as a pointer, for `carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@intrinsic
def float_of(typingctx: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def bits_of(typingctx: Any, value: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def _half(typingctx: Any, bits: Any) -> Any:
    """The float32 of a float16's 16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def _half_bits(typingctx: Any, value: Any) -> Any:
    """The 16 bits of the float16 nearest to a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.fptrunc(arguments[0], ir.HalfType())
        return builder.bitcast(half, context.get_value_type(types.int16))

    return types.int16(types.float32), generate


@intrinsic
def touch(typingctx: Any, address: Any) -> Any:
    """Asks the processor to bring the cache line at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))
        i32 = ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0i8")
        builder.call(prefetch, [pointer, i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic
def add_at(typingctx: Any, address: Any, value: Any) -> Any:
    """Adds to the int64 at an address and returns what was there before, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def to_float(x):
    """A stored element as float32: int8, bfloat16 (as uint16), float16 (as int16) or float32."""
    raise NotImplementedError


@chosen(to_float)
def _to_float(x):
    if x == types.uint16:
        return lambda x: float_of(np.uint32(np.uint32(x) << np.uint32(16)))
    if x == types.int16:
        return lambda x: _half(x)
    return lambda x: np.float32(x)


def put(row, i, value):
    """row[i] = the float32 `value`, rounded to nearest: bfloat16 (as uint16), float16 (as int16)
    or float32."""
    raise NotImplementedError


@chosen(put)
def _put(row, i, value):
    if row.dtype == types.uint16:
        return _put_bfloat16
    if row.dtype == types.int16:
        return _put_half
    return _put_float


def _put_bfloat16(row, i, value):
    bits = np.uint32(bits_of(value))
    # Ties to even; what is added to a NaN could make it an infinity.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    row[i] = np.uint16(rounded if value == value else np.uint32(0x7FC0))


def _put_half(row, i, value):
    row[i] = _half_bits(value)


def _put_float(row, i, value):
    row[i] = value


@jit()
def exp(x: np.float32) -> np.float32:
    """e^x for x <= 88, relative error 4e-6; 0 below -87. Vectorises, libm's does not."""
    y = max(x, np.float32(-87.0)) * np.float32(1.4426950408889634)
    # Truncation of a positive number is floor; half a step of rounding does no harm.
    n = np.int32(y + np.float32(1024.0)) - np.int32(1024)
    f = y - np.float32(n)
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    p = p * f + np.float32(9.9999994e-1)
    power = float_of(np.uint32((n + np.int32(127)) << np.int32(23)))
    return p * power if x > np.float32(-87.0) else np.float32(0.0)


@jit()
def copy(values, into):
    """into[:] = values of one dimension; for a slice numba compiles a message about shapes, too."""
    for i in range(len(into)):
        into[i] = values[i]
