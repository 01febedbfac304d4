"""Which device is chosen, and what is said of a GPU that cannot be used."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from retrolocal import device as module
from retrolocal.config import SessionConfig
from retrolocal.device import choose_device, device_errors, device_note, free_bytes, open_device
from retrolocal.errors import MemoryLimitError, ModelError, UsageError


class Gpu:
    """A machine with a GPU, as PyTorch describes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._patch = monkeypatch
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        self.says(torch.backends.cuda, "is_built", True)
        self.says(torch.cuda, "is_available", True)
        self.says(torch.cuda, "get_device_capability", (8, 6))
        self.says(torch.cuda, "get_device_name", "RTX 3060")
        self._patch.setattr(module.importlib.util, "find_spec", lambda name: name)

    def says(self, of: Any, name: str, answer: Any) -> None:
        self._patch.setattr(of, name, lambda *arguments: answer)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    return Gpu(monkeypatch, tmp_path)


def old_driver() -> bool:
    warnings.warn(
        "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."
        "\nMore lines",
        stacklevel=1,
    )
    return False


def test_a_usable_gpu_is_taken(gpu: Gpu) -> None:
    for wanted in ("auto", "cuda"):
        config = SessionConfig(device=wanted)  # type: ignore[arg-type]
        assert choose_device(config).type == "cuda"
        assert device_note(config) is None
    assert choose_device(SessionConfig(device="cpu")).type == "cpu"


def test_a_bound_of_a_gpu_that_is_not_used_is_told() -> None:
    for wanted in ("auto", "cpu"):
        config = SessionConfig(device=wanted, vram=8.0)  # type: ignore[arg-type]
        if choose_device(config).type == "cpu":
            assert "vram has no effect: no GPU is used" in str(device_note(config))
    assert device_note(SessionConfig(device="cpu")) is None


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("no CUDA", "built without CUDA"),
        ("no driver", "no driver answers"),
        ("old driver", "driver on your system is too old (found version 11040)"),
        ("old GPU", "RTX 3060 has compute capability 7.5 and 8.0 is needed"),
        ("no Triton", "Triton is not installed"),
        ("no cache", "Triton cannot write to"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: str, words: str
) -> None:
    if problem == "no CUDA":
        gpu.says(torch.backends.cuda, "is_built", False)
    elif problem == "no driver":
        gpu.says(torch.cuda, "is_available", False)
    elif problem == "old driver":
        monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    elif problem == "old GPU":
        gpu.says(torch.cuda, "get_device_capability", (7, 5))
    elif problem == "no Triton":
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    else:
        file = tmp_path / "a file"
        file.touch()
        monkeypatch.setenv("TRITON_CACHE_DIR", str(file / "cache"))
    with pytest.raises(UsageError) as raised:
        choose_device(SessionConfig(device="cuda"))
    line = str(raised.value)
    assert words in line
    assert "\n" not in line
    assert "--device is cuda" in line
    assert raised.value.exit_code == 2
    assert choose_device(SessionConfig(device="auto")).type == "cpu"
    gpu.says(module, "_gpu_there", True)
    note = device_note(SessionConfig(device="auto"))
    assert note is not None
    assert words in note


def test_without_a_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "_gpu_there", lambda: False)
    assert device_note(SessionConfig(device="auto")) is None
    assert choose_device(SessionConfig(device="auto")).type == "cpu"


def test_what_a_gpu_fails_with_is_one_line() -> None:
    with pytest.raises(MemoryLimitError, match="GPU's memory is full"), device_errors():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    with pytest.raises(ModelError, match=r"\(CUDA error: unspecified\)") as raised, device_errors():
        raise torch.AcceleratorError("CUDA error: unspecified\nCompile with TORCH_USE_CUDA_DSA")
    assert "\n" not in str(raised.value)
    with pytest.raises(StopIteration), device_errors():
        next(iter(()))


def test_memory_is_bounded(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    gpu.says(torch.cuda, "mem_get_info", (10 << 30, 24 << 30))
    gpu.says(torch.cuda, "memory_reserved", 3 << 30)
    gpu.says(torch.cuda, "memory_allocated", 2 << 30)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    device = open_device(SessionConfig(device="cuda", vram=6.0))
    assert shares == [0.25]
    assert free_bytes(device, 6.0) == 4 << 30
    assert free_bytes(device, None) == 11 << 30
    assert free_bytes(torch.device("cpu"), 6.0) == 0
    with pytest.raises(UsageError, match=r"--vram is 25 and the GPU has 24\.0 GiB"):
        open_device(SessionConfig(device="cuda", vram=25.0))
    with pytest.raises(UsageError, match="--vram is 0"):
        SessionConfig(vram=0.0)
