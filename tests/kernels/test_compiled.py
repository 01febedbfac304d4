"""Where compiled code lies, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrolocal import paths
from retrolocal.kernels.compiled import compiled, kernel_folder, to_compile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path)
    kernel_folder.cache_clear()
    yield tmp_path
    kernel_folder.cache_clear()


@pytest.mark.skipif(not compiled(), reason="without numba nothing is compiled")
def test_what_another_version_compiled_does_not_count(cache: Path) -> None:
    folder = kernel_folder()
    assert folder is not None
    other = cache / "kernels" / ("0" * 16)
    other.mkdir()
    for where, name, left in [
        (other, "wave_attend_numba.attend-1.nbi", True),
        (folder, "rope_numba.turn-1.nbi", True),
        (folder, "wave_attend_numba.attend-1.nbi", False),
    ]:
        (where / name).touch()
        assert to_compile("wave") == left
        assert not to_compile("dense")


def test_nothing_is_kept_where_nothing_can_be_written(cache: Path) -> None:
    (cache / "kernels").write_text("a file")
    assert kernel_folder() is None
    assert to_compile("wave") == compiled()
