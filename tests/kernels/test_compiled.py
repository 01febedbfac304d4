"""Where compiled code lies, whether it is there, and what happens where it cannot be."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrolocal import paths
from retrolocal.kernels.compiled import (
    UNKEPT,
    compiled,
    kernel_folder,
    to_compile,
    unkept_note,
)

needs_numba = pytest.mark.skipif(not compiled(), reason="without numba nothing is compiled")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(UNKEPT, "reason", "")
    monkeypatch.setattr(UNKEPT, "told", False)
    kernel_folder.cache_clear()
    yield tmp_path
    kernel_folder.cache_clear()


@needs_numba
def test_what_another_version_compiled_does_not_count(cache: Path) -> None:
    folder = kernel_folder()
    assert folder is not None
    other = cache / "kernels" / ("0" * 16)
    other.mkdir()
    for where, name, left in [
        (other, "wave_attention_numba._step_int8_int8_bfloat16-1.nbi", True),
        (folder, "rope_numba.turn-1.nbi", True),
        (folder, "wave_attention_numba._step_int8_int8_bfloat16-1.nbi", False),
    ]:
        (where / name).touch()
        assert to_compile("wave") == left
        assert not to_compile("dense")


def test_nothing_is_kept_where_nothing_can_be_written(cache: Path) -> None:
    (cache / "kernels").write_text("a file")
    assert kernel_folder() is None
    assert to_compile("wave") == compiled()
    note = unkept_note()
    assert note is not None
    assert f"{cache / 'kernels'}" in note
    assert os.strerror(errno.ENOTDIR) in note
    assert unkept_note() is None


def compiled_here() -> Any:
    """A compiled function that nothing is known of yet, as a run that begins has it."""
    from retrolocal.kernels.jit_numba import jit, task

    @jit(entry=True)
    def twice(number):  # type: ignore[no-untyped-def]
        return 2 * number

    def work(words: int, member: int) -> None:
        pass

    return twice, task(work)


def require_kept() -> None:
    """What is compiled once is loaded the second time."""
    for hits in (0, 1):
        twice, work = compiled_here()
        assert twice(21) == 42
        assert sum(twice.stats.cache_hits.values()) == work.cache_hits == hits
    assert unkept_note() is None


@needs_numba
def test_code_that_was_kept_is_not_compiled_again() -> None:
    require_kept()


@needs_numba
@pytest.mark.parametrize("full_for", [".nbi", ".nbc"])
@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_stops_nothing(
    full_for: str, why: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some bytes of a file are written, and then no more."""
    from numba.core import caching

    class Full:
        def __init__(self, path: str) -> None:
            self._path = Path(path)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def write(self, data: bytes) -> None:
            self._path.write_bytes(data[: len(data) // 2])
            raise OSError(why, os.strerror(why))

    def opened(path: str, mode: str) -> Any:
        return Full(path) if "w" in mode and full_for in path else io.FileIO(path, mode)

    with monkeypatch.context() as patched:
        patched.setattr(caching, "open", opened, raising=False)
        twice, work = compiled_here()
        assert twice(21) == 42
        assert work.address
    note = unkept_note()
    assert note is not None
    assert f"{kernel_folder()} ({os.strerror(why)})" in note
    assert list(cache.rglob("*.tmp*")) == list(cache.rglob("*.nbc")) == []
    require_kept()


@needs_numba
@pytest.mark.parametrize("name", ["*.nbi", "*.nbc"])
def test_a_damaged_file_is_written_anew(name: str, cache: Path) -> None:
    twice, _ = compiled_here()
    assert twice(21) == 42
    damaged = list(cache.rglob(name))
    assert len(damaged) == 2
    for file in damaged:
        file.write_bytes(file.read_bytes()[:40])
    for hits in (0, 1):
        twice, work = compiled_here()
        assert twice(21) == 42
        assert sum(twice.stats.cache_hits.values()) == work.cache_hits == hits


@needs_numba
def test_machine_code_is_made_of_what_python_calls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.codegen import JITCPUCodegen

    from retrolocal.kernels.jit_numba import jit

    made: list[str] = []
    add = JITCPUCodegen._add_module

    def added(codegen: Any, module: Any) -> Any:
        made.append(module.name)
        return add(codegen, module)

    monkeypatch.setattr(JITCPUCodegen, "_add_module", added)

    @jit()
    def half(number):  # type: ignore[no-untyped-def]
        return number // 2

    @jit()
    def quarter(number):  # type: ignore[no-untyped-def]
        return half(half(number))

    @jit(entry=True)
    def called(number):  # type: ignore[no-untyped-def]
        return quarter(number) + half(number)

    assert called(20) == 15
    assert len(made) == 1
    assert "called" in made[0]


@needs_numba
def test_no_references_are_counted_where_no_arrays_are_made() -> None:
    """A count is a number that all processors write to."""
    from retrolocal.kernels.jit_numba import jit
    from retrolocal.kernels.part_numba import COUNTING

    def called(count: Any) -> Any:
        @jit(allocates=count)
        def rest_of(values):  # type: ignore[no-untyped-def]
            return values[1:].sum()

        @jit(entry=True)
        def outer(values):  # type: ignore[no-untyped-def]
            return rest_of(values)

        assert outer(np.arange(5)) == 10
        (code,) = rest_of.overloads.values()
        return code.library.get_llvm_str()

    counted, uncounted = called(True), called(False)
    for name in COUNTING:
        assert f"call void @{name}" in counted
        assert f"call void @{name}" not in uncounted


@needs_numba
@pytest.mark.parametrize("by_head", [True, False])
def test_a_step_whose_memory_is_missing_raises(
    by_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the task that failed."""
    from numba.core.caching import NullCache

    from retrolocal.kernels import jit_numba
    from retrolocal.kernels import wave_attention_numba as module

    @jit_numba.jit()
    def nothing(w, *others):  # type: ignore[no-untyped-def]
        pass

    @jit_numba.jit()
    def failing(w, kind, kept, task):  # type: ignore[no-untyped-def]
        if task == 3:
            raise MemoryError("no room")

    # What is compiled here must not be found by others.
    monkeypatch.setattr(jit_numba, "kept_code", lambda function: NullCache())
    for name in ("find", "score_found", "choose", "attend", "merge_parts"):
        monkeypatch.setattr(module, name, nothing)
    monkeypatch.setattr(module, "_first", failing)
    for name in ("_do", "_by_pass", "_by_head"):
        function = getattr(module, name).py_func
        monkeypatch.setattr(module, name, jit_numba.jit()(function))
    work = module._Work()
    for name, number in (("KV_HEADS", 2), ("PARTS", 2), ("SEGMENTS", 3)):
        work.words[getattr(module, name)] = number
    work.put(module.PROGRESS, np.zeros((1, 8), np.int64))
    step = module._step_of.__wrapped__(*[torch.int8] * 3)
    with pytest.raises(MemoryError):
        module._run(work, step, 2 if by_head else 3, None)


@needs_numba
def test_what_compiled_code_allocates_it_frees() -> None:
    """An array made where references are not counted would stay."""
    from numba.core.runtime import _nrt_python, rtsys

    from retrolocal.config import WaveConfig
    from retrolocal.fidelity import build_index
    from retrolocal.kernels.attention import full_attention
    from retrolocal.kernels.rms_norm import rms_norm
    from retrolocal.kernels.rope import apply_rope

    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 2, 3000, 64, generator=generator).bfloat16()
    q = torch.randn(4, 64, generator=generator).bfloat16()
    turns = torch.randn(2, 1, 32, generator=generator).bfloat16()
    index, steady = build_index(k, v, WaveConfig(store_type="int8", segment_tokens=1024))

    def everything() -> None:
        index.answer(q, steady)
        full_attention(q[:, None], k, v, scale=0.1)
        apply_rope(q[:, None], *turns)
        rms_norm(q[None], q[0], 1e-6)
        index.segments[0].rows(0)

    _nrt_python.memsys_enable_stats()
    everything()
    before = rtsys.get_allocation_stats()
    for _ in range(50):
        everything()
    after = rtsys.get_allocation_stats()
    assert after.mi_alloc > before.mi_alloc
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free
