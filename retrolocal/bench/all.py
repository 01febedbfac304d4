"""`retrolocal bench all`: what says most about a GPU, one after the other, within some minutes.

Parts follow each other from what fails least to what needs most; one that fails is told and the
next begins. The result of each is written as soon as it is there, so that a run that is cut off
leaves what it has. On a CPU the parts that time a GPU's own kernels are left out.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..config import SessionConfig, WaveConfig
from ..device import choose_device, device_errors, device_name
from ..errors import RetrolocalError
from ..measurement import Progress, Result, write_result
from . import attention, decode, device_buffer, device_decode, device_score
from .options import QWEN, AllOptions, AttentionOptions, SpeedOptions
from .synthetic import AttentionData, structured_answer

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e7,
    "max_position_embeddings": 1 << 22,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""The shape of Qwen2.5-7B, with positions for any context."""
SHARE = 5.0
"""Size of the block cache that is timed, percent of the store."""
SHORTER = 8
"""One part in so many of the longest context is timed too."""
STEPS = 64
Part = Callable[[], Result]


def run(options: AllOptions, progress: Progress) -> Result:
    """Raises UsageError without the device, and where a result cannot be written."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(SessionConfig(device=options.device))
    began = time.monotonic()
    found: dict[str, Result] = {}
    with _model(options.model) as model:
        parts = _Parts(options, device, model, progress)
        for name, part in parts.all().items():
            passed = (time.monotonic() - began) / 60
            if passed >= options.minutes:
                found[name] = {"left_out": f"{passed:.1f} minutes had passed"}
                continue
            progress(f"{passed:.1f} min: {name}")
            found[name] = _tried(part)
            _forget(device)
            if options.out is not None:
                write_result(options.out / f"bench-all-{name}.json", found[name])
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "minutes": (time.monotonic() - began) / 60,
        **found,
    }


class _Parts:
    """The parts by name, in their order; the longest context's keys and values are made once."""

    def __init__(
        self, options: AllOptions, device: torch.device, model: str, progress: Progress
    ) -> None:
        self._options, self._device, self._model = options, device, model
        self._progress = progress
        self._data: AttentionData | None = None

    def all(self) -> dict[str, Part]:
        parts: dict[str, Part] = {"attention": self._attention}
        if self._device.type == "cuda":
            parts |= {"attention-long": self._attention_long, "score": self._score}
            parts |= {"buffer": self._buffer}
        return parts | {"decode": self._decode, "prefill": self._prefill}

    def _attention(self) -> Result:
        return attention.run(
            AttentionOptions(
                tokens=self._options.tokens // SHORTER,
                device=self._options.device,
                threads=self._options.threads,
                seed=self._options.seed,
            ),
            self._progress,
        )

    def _attention_long(self) -> Result:
        options = AttentionOptions(tokens=self._options.tokens, device=self._options.device)
        long = self._long()
        few = AttentionData(long.q[:4], long.k, long.v).to(self._device)
        return attention.measure(few, options, self._device, self._progress)

    def _score(self) -> Result:
        return device_score.measure(self._long(), WaveConfig(), self._device, self._progress)

    def _buffer(self) -> Result:
        config = WaveConfig(store_type="int8")
        return device_buffer.measure(self._long(), config, SHARE, 3, self._device, self._progress)

    def _decode(self) -> Result:
        config = WaveConfig(store_type="int8")
        session = SessionConfig(
            device=self._options.device, cache="wave", wave=config, vram=self._options.vram
        )
        gpu = self._device.type == "cuda"
        try:
            return device_decode.measure(
                self._model,
                self._options.tokens,
                session,
                self._long() if gpu else None,
                self._progress,
                seed=self._options.seed,
            )
        finally:
            if gpu:
                torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    def _prefill(self) -> Result:
        depth = self._options.tokens // SHORTER
        prompt = min(8192, depth // 2)
        return decode.run(
            SpeedOptions(
                model=self._model,
                random_weights=True,
                depths=(depth - prompt,),
                n_prompt=(prompt,),
                caches=("dense", "wave"),
                repetitions=1,
                session=SessionConfig(
                    device=self._options.device, wave=WaveConfig(store_type="int8")
                ),
                seed=self._options.seed,
            ),
            self._progress,
        )

    def _long(self) -> AttentionData:
        if self._data is None:
            self._progress(f"making keys and values of {self._options.tokens:,} tokens")
            self._data = structured_answer(
                tokens=self._options.tokens,
                q_heads=28,
                kv_heads=4,
                head_dim=128,
                steps=STEPS,
                seed=self._options.seed,
            )
        return self._data


def _tried(part: Part) -> Result:
    """Its result, or what it failed with: the parts after it do not depend on it."""
    try:
        with device_errors():
            return part()
    except RetrolocalError as error:
        return {"error": str(error)}
    except Exception as error:
        # A kernel that does not compile on this GPU, say: a figure less, not a run less.
        return {"error": f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"}


def _forget(device: torch.device) -> None:
    """What a part left in PyTorch's and Triton's hands is not the next one's limit."""
    if device.type == "cuda":
        from ..kernels.wave_attention_triton import forget

        forget()
        torch.cuda.empty_cache()


@contextmanager
def _model(name: str) -> Iterator[str]:
    """What `--model` takes for this architecture."""
    if name != QWEN:
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="retrolocal-bench-") as made:
        folder = Path(made) / QWEN
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
        yield str(folder)
