"""Orders for a team's helpers, given and awaited in compiled code: nobody needs Python's lock.

Each helper has a box of words. Who has work writes it there and then ORDERED into the box's state;
a helper that finds that makes it WORKING, does the work, makes it IDLE and looks on for a while, as
a sleeping thread takes longer to wake than many a piece of work takes. When nothing has come it
makes it ASLEEP and returns. All changes of a state are atomic, and everyone but the helper itself
changes it from what was seen only: an order that a helper has not begun can be taken back.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit_numba import jit, pointer

BOX = 16
"""Words from one box to the next: two cache lines, as processors fetch pairs of them."""
STATE, TASK, WORDS = range(3)
IDLE, ASLEEP, ORDERED, WORKING = (np.int64(state) for state in range(4))

PAUSES = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "AMD64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.hint", (1,)),
    "arm64": ("llvm.aarch64.hint", (1,)),
}
"""What tells a processor that a thread is waiting, by machine."""
_PAUSE = PAUSES.get(platform.machine())

Place = ir.IntType(64).as_pointer()


@intrinsic
def pause(typingctx: Any) -> Any:
    """Lets the processor wait a little."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _PAUSE is not None:
            name, values = _PAUSE
            given = [ir.IntType(32)(value) for value in values]
            kind = ir.FunctionType(ir.VoidType(), [one.type for one in given])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def load_at(typingctx: Any, address: Any) -> Any:
    """The int64 at an address, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], Place), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def exchange_at(typingctx: Any, address: Any, value: Any) -> Any:
    """Puts an int64 at an address and returns what was there before, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], Place)
        return builder.atomic_rmw("xchg", place, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def replace_at(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    """Puts `new` where `old` is at an address, atomically; whether `old` was there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], Place)
        pair = builder.cmpxchg(place, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def call_at(typingctx: Any, task: Any, words: Any, member: Any) -> Any:
    """Calls a compiled task (`jit_numba.task`) at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        i64 = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [i64, i64]).as_pointer()
        builder.call(builder.inttoptr(arguments[0], function), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@jit(entry=True)
def lead(boxes, helpers, task, words, rounds, give_way):
    """Orders a task from all helpers, does the caller's share, and waits for those that have begun.

    Orders of the others are taken back. After so many rounds of waiting the caller calls what is at
    the address `give_way` each time, unless that is 0.
    """
    asleep = order(boxes, helpers, task, words)
    call_at(task, words, 0)
    for i in range(helpers):
        before = ASLEEP if asleep >> i & 1 else IDLE
        replace_at(boxes + 8 * BOX * i, ORDERED, before)
    await_all(boxes, helpers, rounds, give_way)


@jit(entry=True)
def order(boxes, helpers, task, words):
    """Orders a task from all helpers; bit i is set where helper i sleeps and has to be woken.

    `task` 0 makes helpers return to Python for what they have to do.
    """
    asleep = np.int64(0)
    for i in range(helpers):
        place = boxes + 8 * BOX * i
        box = carray(pointer(place), BOX, np.int64)
        box[TASK], box[WORDS] = task, words
        if exchange_at(place, ORDERED) == ASLEEP:
            asleep |= np.int64(1) << i
    return asleep


@jit(entry=True)
def await_all(boxes, helpers, rounds, give_way):
    """Waits until no helper has an order; see `lead`."""
    for i in range(helpers):
        while load_at(boxes + 8 * BOX * i) >= ORDERED:
            if rounds > 0:
                rounds -= 1
                pause()
            else:
                wait(1, give_way)


@jit(entry=True)
def serve(place, member, rounds, give_way):
    """Does orders as they come.

    True: the last one is to be done in Python, and `ended` told of it. False: none came during so
    many rounds of `wait`, and the helper counts as asleep.
    """
    box, left = carray(pointer(place), BOX, np.int64), rounds
    replace_at(place, ASLEEP, IDLE)
    while True:
        if load_at(place) == ORDERED:
            if replace_at(place, ORDERED, WORKING):
                if box[TASK] == 0:
                    return True
                call_at(box[TASK], box[WORDS], member)
                exchange_at(place, IDLE)
                left = rounds
        elif left > 0:
            left -= 1
            wait(1, give_way)
        elif replace_at(place, IDLE, ASLEEP) or load_at(place) == ASLEEP:
            return False


@jit(entry=True)
def ended(place):
    """A helper's order was done in Python."""
    exchange_at(place, IDLE)


@jit(entry=True)
def wait(rounds, give_way):
    """Waits a little, so many times; others go first, by what is at `give_way` unless that is 0.

    A helper that only looks must not take a processor from anyone: it would be interrupted later,
    in the midst of a piece that the caller then waits for.
    """
    for _ in range(rounds):
        pause()
        if give_way != 0:
            call_at(give_way, 0, 0)
