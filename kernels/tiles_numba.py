"""Products of a few queries with stored rows, written for vector registers.

Loops over dimensions as numba gives them to its compiler keep few sums in registers. These are
given to it as vector instructions, of which LLVM makes what the processor has: a tile is some
queries times some rows, or some queries times some dimensions, whose sums all stay in registers.
Rows are read where they lie, as they are stored (`to_float`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit_numba import jit, pointer, to_float

Value = Any
"""Of LLVM's language."""


def _registers() -> tuple[int, int]:
    """Floats in a vector register of the processor at hand, and how many registers it has."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 32
    if features.get("avx"):
        return 8, 16
    return 4, 32 if features.get("neon") else 16


LANES, _REGISTERS = _registers()
WHOLE_LANES = 2 * LANES if platform.machine().lower() in ("x86_64", "amd64") else 0
"""Products of int16 that a register sums in pairs: one instruction on x86. 0: not used."""
QUERIES = 7 if _REGISTERS > 16 else 4
"""Queries of a tile, at most."""
ROWS = 4
"""Rows of a tile (of one of sums: registers of dimensions), at most: see `_rows_beside`."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS = ir.VectorType(_F32, LANES)
_INTS = ir.VectorType(_I32, LANES)
_FAST = ("reassoc", "contract", "arcp", "nsz", "afn")


@jit()
def address(array):
    """Of an array's first element."""
    return np.int64(array.ctypes.data)


@jit()
def dots(q, first, count, rows, n, out, at, stored):
    """out[g, at + i] = q[first + g] . the row at address rows[i], for g < count and i < n.

    q float32 [.., D] and out float32 contiguous; rows of D elements of the dtype of `stored`.
    """
    dim = q.shape[1]
    whole = dim // LANES * LANES
    _dots(
        address(q) + first * q.shape[1] * 4,
        q.shape[1] * 4,
        count,
        address(rows),
        n,
        whole,
        address(out) + at * 4,
        out.shape[1] * 4,
        stored,
    )
    for i in range(n if whole < dim else 0):
        row = carray(pointer(rows[i]), dim, stored.dtype)
        for g in range(count):
            for d in range(whole, dim):
                out[g, at + i] += q[first + g, d] * to_float(row[d])


@jit()
def whole_dots(q, steps, first, count, rows, n, out, at):
    """out[g, at + i] = steps[first + g] * q[first + g] . the row at address rows[i].

    q int16 [.., D], D a multiple of WHOLE_LANES, |q| <= `largest(D)`; rows of D int8. Sums of
    whole numbers, which processors multiply twice as many of at once, and which are exact.
    """
    _whole_dots(
        address(q) + first * q.shape[1] * 2,
        q.shape[1] * 2,
        count,
        address(rows),
        n,
        q.shape[1],
        address(out) + at * 4,
        out.shape[1] * 4,
        address(steps) + first * 4,
        q,
    )


@jit()
def largest(dim):
    """What whole numbers may be for their product with int8 rows to stay below 2^31."""
    return np.float32(min((1 << 31) // (128 * dim) - 1, (1 << 15) - 1))


@jit()
def add_rows(weights, which, rows, n, total, stored):
    """total[g] += the sum over i < n of weights[g, which[i]] * the row at address rows[i].

    weights and total [.., D] float32, contiguous; rows of D elements of the dtype of `stored`.
    """
    dim = total.shape[1]
    whole = dim // LANES * LANES
    _add_rows(
        address(weights),
        weights.shape[1] * 4,
        address(which),
        address(rows),
        n,
        whole,
        address(total),
        total.shape[1] * 4,
        total.shape[0],
        stored,
    )
    for i in range(n if whole < dim else 0):
        row = carray(pointer(rows[i]), dim, stored.dtype)
        for g in range(total.shape[0]):
            for d in range(whole, dim):
                total[g, d] += weights[g, which[i]] * to_float(row[d])


@jit()
def highest(values):
    """The largest of a contiguous float32 array; -inf of none. NaN may be seen or not."""
    whole = len(values) // LANES * LANES
    found = _highest(address(values), whole) if whole else np.float32(-np.inf)
    for i in range(whole, len(values)):
        found = max(found, values[i])
    return found


class _Code:
    """A function in the making."""

    def __init__(self, builder: Value) -> None:
        self.builder = builder

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int) -> Iterator[Value]:
        with cgutils.for_range_slice(self.builder, start, stop, _I64(step), _I64) as (i, _):
            yield i

    def at(self, base: Value, index: Value, size: Value | int) -> Value:
        """The address of element `index` of `size` bytes."""
        size = _I64(size) if isinstance(size, int) else size
        return self.builder.add(base, self.builder.mul(index, size))

    def load(self, kind: Value, address: Value) -> Value:
        place = self.builder.inttoptr(address, ir.PointerType())
        return self.builder.load(place, align=1, typ=kind)

    def store(self, value: Value, address: Value) -> None:
        self.builder.store(value, self.builder.inttoptr(address, ir.PointerType()), align=4)

    def row(self, address: Value, element: Any) -> Value:
        """A register of stored elements as float32: `to_float` of each."""
        builder = self.builder
        if element == types.float32:
            return self.load(_FLOATS, address)
        if element == types.int16:
            halves = self.load(ir.VectorType(ir.HalfType(), LANES), address)
            return builder.fpext(halves, _FLOATS)
        if element == types.uint16:
            bits = self.load(ir.VectorType(ir.IntType(16), LANES), address)
            sixteen = ir.Constant(_INTS, [16] * LANES)
            return builder.bitcast(builder.shl(builder.zext(bits, _INTS), sixteen), _FLOATS)
        assert element == types.int8, element
        steps = self.load(ir.VectorType(ir.IntType(8), LANES), address)
        return builder.sitofp(builder.sext(steps, _INTS), _FLOATS)

    def add_pairs(self, x: Value, y: Value, total: Value) -> Value:
        """Products of int16 lanes, neighbours summed, + total: LLVM knows the pattern."""
        builder, wide = self.builder, ir.VectorType(_I32, WHOLE_LANES)
        products = builder.mul(builder.sext(x, wide), builder.sext(y, wide))
        even, odd = (self.lanes(products, products, list(range(i, WHOLE_LANES, 2))) for i in (0, 1))
        return builder.add(total, builder.add(even, odd))

    def multiply_add(self, x: Value, y: Value, total: Value) -> Value:
        """x * y + total, one instruction where there is one."""
        return self.builder.fadd(self.builder.fmul(x, y, flags=_FAST), total, flags=_FAST)

    def spread(self, value: Value, lanes: int = LANES) -> Value:
        """A float32 in all lanes."""
        none = ir.Constant(ir.VectorType(_F32, lanes), ir.Undefined)
        first = self.builder.insert_element(none, value, _I32(0))
        return self.lanes(first, none, [0] * lanes)

    def lanes(self, one: Value, other: Value, wanted: list[int]) -> Value:
        mask = ir.Constant(ir.VectorType(_I32, len(wanted)), wanted)
        return self.builder.shuffle_vector(one, other, mask)

    def add(self, one: Value, other: Value) -> Value:
        if one.type.element == _F32:
            return self.builder.fadd(one, other, flags=_FAST)
        return self.builder.add(one, other)

    def halves(self, one: Value, other: Value, run: int) -> Value:
        """Of runs of lanes the sums of both halves: those of `one`, then those of `other`.

        A blend and one shuffle, of which processors do fewer at once.
        """
        half = run // 2
        kept = [lane + LANES * (lane % run >= half) for lane in range(LANES)]
        moved = [lane + half if lane % run < half else lane + LANES - half for lane in range(LANES)]
        return self.add(self.lanes(one, other, kept), self.lanes(one, other, moved))

    def sums(self, registers: list[Value]) -> list[Value]:
        """The sums of registers in order, in as few as hold them; more lanes may follow."""
        if len(registers) > LANES:
            some = (registers[i : i + LANES] for i in range(0, len(registers), LANES))
            return [found for part in some for found in self.sums(part)]
        run, none = LANES, ir.Constant(registers[0].type, None)
        while len(registers) & (len(registers) - 1):
            registers = [*registers, none]
        while len(registers) > 1:
            middle = len(registers) // 2
            pairs = zip(registers[:middle], registers[middle:], strict=True)
            registers = [self.halves(*pair, run) for pair in pairs]
            run //= 2
        (found,) = registers
        while run > 1:
            even, odd = (
                self.lanes(found, found, list(range(i, found.type.count, 2))) for i in (0, 1)
            )
            found, run = self.add(even, odd), run // 2
        return [found]


def _function(
    builder: Value, name: str, arguments: int, write: Callable[[_Code, list[Value]], None]
) -> Value:
    """The function of this name, of so many int64, in the builder's module; written once."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [_I64] * arguments), name
    )
    if function.is_declaration:
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block())
        write(_Code(inside), list(function.args))
        inside.ret_void()
    return function


def _rows_beside(queries: int) -> int:
    """How many rows a tile of so many queries has: sums take half of the registers at most."""
    return ROWS if queries * ROWS <= _REGISTERS // 2 else ROWS // 2


def _by_query(code: _Code, count: Value, write: Callable[[int, Value], None]) -> None:
    """Writes a loop over `count` queries in tiles as equal as can be.

    `write` is given how many a tile has, and the first of them.
    """
    builder = code.builder
    tiles = builder.udiv(builder.add(count, _I64(QUERIES - 1)), _I64(QUERIES))
    with code.loop(_I64(0), tiles, 1) as i:
        first, stop = (
            builder.udiv(builder.mul(count, number), tiles)
            for number in (i, builder.add(i, _I64(1)))
        )
        held = builder.sub(stop, first)
        for queries in range(1, QUERIES + 1):
            with builder.if_then(builder.icmp_signed("==", held, _I64(queries))):
                write(queries, first)


def _least(builder: Value, one: Value, other: Value) -> Value:
    return builder.select(builder.icmp_signed("<", one, other), one, other)


def _write_dots(code: _Code, arguments: list[Value], element: Any) -> None:
    """`dots`; with whole queries one more argument, the address of their steps."""
    q, q_stride, count, rows, n, dim, out, out_stride, *steps = arguments
    whole, builder = bool(steps), code.builder
    lanes, q_size = (WHOLE_LANES, 2) if whole else (LANES, 4)
    size = 1 if whole else element.bitwidth // 8
    zero = ir.Constant(_INTS if whole else _FLOATS, None)

    def row(address: Value) -> Value:
        if not whole:
            return code.row(address, element)
        narrow = code.load(ir.VectorType(ir.IntType(8), lanes), address)
        return builder.sext(narrow, ir.VectorType(ir.IntType(16), lanes))

    asked_type = ir.VectorType(ir.IntType(16), lanes) if whole else _FLOATS
    add = code.add_pairs if whole else code.multiply_add

    def tile(queries: int, side: int, g: Value, i: Value) -> None:
        left = builder.sub(n, i)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(queries * side)]
        asked = [code.at(q, builder.add(g, _I64(j)), q_stride) for j in range(queries)]
        # Beyond the last row that one is read again.
        held = [_least(builder, _I64(r), builder.sub(left, _I64(1))) for r in range(side)]
        places = [code.load(_I64, code.at(rows, builder.add(i, r), 8)) for r in held]
        with code.loop(_I64(0), dim, lanes) as d:
            read = [row(code.at(place, d, size)) for place in places]
            for j, query in enumerate(asked):
                x = code.load(asked_type, code.at(query, d, q_size))
                for r, y in enumerate(read):
                    total = sums[j * side + r]
                    builder.store(add(x, y, builder.load(total)), total)
        registers = [builder.load(total) for total in sums]
        found = code.sums(registers)
        if whole:
            found = [
                builder.sitofp(total, ir.VectorType(_F32, total.type.count)) for total in found
            ]
        places = [
            code.at(code.at(out, builder.add(g, _I64(j)), out_stride), i, 4) for j in range(queries)
        ]
        each = found[0].type.count
        parts = []
        for j in range(queries):
            start = j * side % each
            part = code.lanes(*[found[j * side // each]] * 2, list(range(start, start + side)))
            if whole:
                step = code.load(_F32, code.at(steps[0], builder.add(g, _I64(j)), 4))
                part = builder.fmul(part, code.spread(step, side), flags=_FAST)
            parts.append(part)
        with builder.if_else(builder.icmp_signed(">=", left, _I64(side))) as (all_, some):
            with all_:
                for place, part in zip(places, parts, strict=True):
                    code.store(part, place)
            with some:
                for r in range(side - 1):
                    with builder.if_then(builder.icmp_signed(">", left, _I64(r))):
                        for place, part in zip(places, parts, strict=True):
                            value = builder.extract_element(part, _I32(r))
                            code.store(value, builder.add(place, _I64(4 * r)))

    def tiles(queries: int, g: Value) -> None:
        side = _rows_beside(queries)
        with code.loop(_I64(0), n, side) as i:
            tile(queries, side, g, i)

    _by_query(code, count, tiles)


def _write_add_rows(code: _Code, arguments: list[Value], element: Any) -> None:
    weights, stride, which, rows, n, dim, total, total_stride, count = arguments
    builder, size = code.builder, element.bitwidth // 8

    def tile(queries: int, registers: int, g: Value, d: Value) -> None:
        places = [
            builder.add(
                code.at(code.at(total, builder.add(g, _I64(j)), total_stride), d, 4),
                _I64(4 * LANES * v),
            )
            for j in range(queries)
            for v in range(registers)
        ]
        sums = [cgutils.alloca_once_value(builder, code.load(_FLOATS, place)) for place in places]
        lines = [code.at(weights, builder.add(g, _I64(j)), stride) for j in range(queries)]
        with code.loop(_I64(0), n, 1) as i:
            row = code.at(code.load(_I64, code.at(rows, i, 8)), d, size)
            read = [
                code.row(builder.add(row, _I64(size * LANES * v)), element)
                for v in range(registers)
            ]
            column = code.load(_I64, code.at(which, i, 8))
            for j, line in enumerate(lines):
                weight = code.spread(code.load(_F32, code.at(line, column, 4)))
                for v, y in enumerate(read):
                    held = sums[j * registers + v]
                    builder.store(code.multiply_add(weight, y, builder.load(held)), held)
        for place, held in zip(places, sums, strict=True):
            code.store(builder.load(held), place)

    def tiles(queries: int, g: Value) -> None:
        side = _rows_beside(queries)
        wide = builder.sub(dim, builder.srem(dim, _I64(side * LANES)))
        for registers, start, stop in ((side, _I64(0), wide), (1, wide, dim)):
            with code.loop(start, stop, registers * LANES) as d:
                tile(queries, registers, g, d)

    _by_query(code, count, tiles)


def _intrinsic_of(
    name: str, arguments: int, write: Callable[[_Code, list[Value], Any], None]
) -> Any:
    """What generates a call of a function for the element type of the last argument."""

    def generate(context: Any, builder: Value, signature: Any, given: Any) -> Value:
        element = signature.args[-1].dtype
        function = _function(
            builder,
            f"retrolocal_{name}_{element}",
            arguments,
            lambda code, values: write(code, values, element),
        )
        builder.call(function, given[:arguments])
        return context.get_dummy_value()

    return generate


@intrinsic
def _dots(typingctx, q, q_stride, count, rows, n, dim, out, out_stride, stored):
    """`dots` for `dim` a multiple of LANES; addresses, and strides in bytes."""
    signature = types.void(*[types.int64] * 8, stored)
    return signature, _intrinsic_of("dots", 8, _write_dots)


@intrinsic
def _whole_dots(typingctx, q, q_stride, count, rows, n, dim, out, out_stride, steps, kind):
    """`whole_dots`; addresses, and strides in bytes."""
    signature = types.void(*[types.int64] * 9, kind)
    return signature, _intrinsic_of("whole_dots", 9, _write_dots)


@intrinsic
def _add_rows(typingctx, weights, stride, which, rows, n, dim, total, total_stride, count, stored):
    """`add_rows` for `dim` a multiple of LANES; addresses, and strides in bytes."""
    signature = types.void(*[types.int64] * 9, stored)
    return signature, _intrinsic_of("add_rows", 9, _write_add_rows)


@intrinsic
def _highest(typingctx, values, n):
    """`highest` of n float32 at an address, n a multiple of LANES and not 0."""

    def generate(context, builder, signature, given):
        code, (values, n) = _Code(builder), given
        best = cgutils.alloca_once_value(builder, code.load(_FLOATS, values))
        with code.loop(_I64(LANES), n, LANES) as i:
            known, seen = builder.load(best), code.load(_FLOATS, code.at(values, i, 4))
            more = builder.fcmp_ordered(">", seen, known)
            builder.store(builder.select(more, seen, known), best)
        known = builder.load(best)
        while known.type.count > 1:
            one, other = (
                code.lanes(known, known, list(range(start, known.type.count, 2)))
                for start in (0, 1)
            )
            known = builder.select(builder.fcmp_ordered(">", one, other), one, other)
        return builder.extract_element(known, _I32(0))

    return types.float32(types.int64, types.int64), generate
