"""What only compiled code calls: it becomes a part of its callers and has no machine code itself.

numba optimises each function together with all that it calls and makes machine code of that; then
its callers, with it inside, and theirs. Here that is done once, for what Python calls.

It also counts the references to an array that a function is handed, or takes a slice of: one
processor waits for the other to add 1 to the same number. What makes no arrays need not count.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _Environments:
    """What a part has in the place of numba's engine: nobody ever looks for its environment."""

    def set_env(self, name: str, environment: Any) -> None:
        pass


class _Part(JITCodeLibrary):
    """The code of a function as it was written, for others to take in."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """None, as numba expects of a function that Python cannot call."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> _Environments:
        return _Environments()


class _Uncounted(_Part):
    """The same without counts of references."""

    def add_ir_module(self, module: ir.Module) -> None:
        for function in module.functions:
            for block in function.blocks:
                block.instructions = [one for one in block.instructions if not _counts(one)]
        super().add_ir_module(module)


def _counts(instruction: Any) -> bool:
    return isinstance(instruction, ir.CallInstr) and instruction.callee.name in COUNTING


COUNTING = ("NRT_incref", "NRT_decref")
"""What numba counts with; neither returns anything."""


class PartCompiler(Compiler):
    """Compiles a function to a part: `pipeline_class` of `numba.njit`."""

    library: type[_Part] = _Part

    def __init__(self, typingctx: Any, targetctx: Any, *arguments: Any) -> None:
        super().__init__(typingctx, targetctx, *arguments)
        self.state.library = self.library(targetctx.codegen(), "part")


class UncountedCompiler(PartCompiler):
    """The same without counts of references.

    Arrays that are made inside are never freed; those that it is given must not be returned to
    callers that count.
    """

    library = _Uncounted
