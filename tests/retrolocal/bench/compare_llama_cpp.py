"""Decoding speed of a whole model beside llama.cpp's: same architecture, same threads, in turn.

    python -m venv LLAMA && LLAMA/bin/pip install gguf llama-cpp-python --no-binary llama-cpp-python
    python tests/retrolocal/bench/compare_llama_cpp.py -m config.json --llama LLAMA/bin/python

Both have random weights: ours in bfloat16, theirs in an F16 GGUF that is written first (a family
that llama.cpp calls `llama`). Ours is what `retrolocal bench decode --weights random` times; theirs
has keys and values in F16 and is timed with flash attention and without. Two processes per pair
hold everything and decode in turn, so that what else the machine does slows down both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrolocal.config import SessionConfig, WaveConfig, limit_spinning
from retrolocal.errors import ConfigError
from retrolocal.models.config import ModelConfig, parse_config
from retrolocal.models.json_reader import read_json

WORKER = Path(__file__).with_name("llama_cpp_worker.py")


class Side:
    """A process that has filled its cache and decodes when it is asked to."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.ready = self._answer()

    def speed(self) -> float:
        """Tokens per second of one round."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def side(*command: object) -> Iterator[Side]:
    opened = Side([str(word) for word in command])
    try:
        yield opened
    finally:
        opened.close()


def compare(options: argparse.Namespace, gguf: Path, depth: int) -> list[dict[str, Any]]:
    """Rows of tokens per second: llama.cpp with flash attention and without, ours beside each."""
    common = ["--depth", depth, "-n", options.n, "-t", options.threads]
    rows = []
    for flash in ("on", "off"):
        ours = [sys.executable, __file__, "-m", options.model, "--llama", options.llama, *common]
        theirs = [options.llama, WORKER, "serve", gguf, "--flash", flash, *common]
        with (
            side(*ours, "-r", options.repetitions, "--serve", options.store_type) as mine,
            side(*theirs) as other,
        ):
            pairs = [(mine.speed(), other.speed()) for _ in range(options.repetitions)]
            rows.append(
                {
                    "depth": depth,
                    "flash_attention": flash,
                    "llama_cpp_python": other.ready,
                    "retrolocal": [pair[0] for pair in pairs],
                    "llama_cpp": [pair[1] for pair in pairs],
                    "ratio": statistics.median(one / two for one, two in pairs),
                }
            )
        say(rows[-1])
    return rows


def say(row: dict[str, Any]) -> None:
    ours, theirs = (statistics.median(row[name]) for name in ("retrolocal", "llama_cpp"))
    print(
        f"depth {row['depth']:>7,}  retrolocal {ours:6.2f} tokens/s  llama.cpp, flash attention "
        f"{row['flash_attention']:3} {theirs:6.2f} tokens/s  ratio {row['ratio']:.2f}",
        file=sys.stderr,
        flush=True,
    )


def read(path: Path) -> ModelConfig:
    try:
        return parse_config(read_json(path, ConfigError))
    except ConfigError as error:
        sys.exit(str(error))


def specification(config: ModelConfig) -> dict[str, Any]:
    """What the worker writes a GGUF from."""
    from retrolocal.kernels.rope import default_frequencies
    from retrolocal.models.decoder import inverse_frequencies

    plain = (
        config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm or config.experts
    )
    if plain or any(layer.window or not layer.rope for layer in config.layers):
        sys.exit(f"{config.family} models are not what llama.cpp calls llama; give another config")
    plain_rope = default_frequencies(config.head_dim, config.rope.theta)
    factors = plain_rope / inverse_frequencies(config.rope, config.head_dim)
    return {
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layers": len(config.layers),
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_factors": factors.tolist(),
        "tied": config.tie_embeddings,
    }


def serve(options: argparse.Namespace) -> None:
    """Our side: `time_test` of the benchmark, each repetition begun by a line that is read."""
    limit_spinning()
    import torch

    from retrolocal.bench.decode import Contender, filled_caches, time_test
    from retrolocal.bench.model import find_model, open_decoder
    from retrolocal.bench.options import SpeedOptions
    from retrolocal.bench.synthetic import structured_data

    session = SessionConfig(
        dtype="bfloat16",
        device="cpu",
        threads=options.threads,
        cache="auto",
        wave=WaveConfig(store_type=options.serve),
    )
    speed = SpeedOptions(
        model=str(options.model),
        random_weights=True,
        depths=(options.depth,),
        n_gen=(options.n,),
        repetitions=options.repetitions,
        session=session,
    )
    torch.set_num_threads(options.threads)
    model = find_model(speed, lambda line: None)
    decoder = open_decoder(model, speed, lambda line: None)
    config = model.config
    data = None
    if options.depth:
        data = structured_data(
            tokens=options.depth,
            q_heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            steps=1,
            seed=speed.seed,
            dtype=model.dtype,
        )
    caches = filled_caches(config, session, data, options.depth, model.dtype, model.device)

    def begin() -> None:
        if not sys.stdin.readline():
            sys.exit()

    def report(name: str, number: int, tokens_per_second: float) -> None:
        answer(tokens_per_second)

    answer(sum(cache.statistics().bytes for cache in caches))
    ours = Contender("ours", caches, begin)
    time_test(decoder, [ours], options.depth, 0, options.n, speed, report)


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", type=Path, required=True, help="a config.json")
    parser.add_argument("--llama", required=True, help="Python that has llama-cpp-python and gguf")
    parser.add_argument("--gguf", type=Path, help="kept there (default: a temporary file)")
    parser.add_argument("--depth", default="0,32768,131072", help="tokens of context, with commas")
    parser.add_argument("-n", type=int, default=32, help="tokens of a round")
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="rounds of each side")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--store-type", default=WaveConfig().store_type)
    parser.add_argument("--json", action="store_true", help="print all rounds on stdout")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        options.depth = int(options.depth)
        serve(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        gguf = options.gguf or Path(folder) / "random.gguf"
        if not gguf.exists():
            spec = Path(folder) / "spec.json"
            spec.write_text(json.dumps(specification(read(options.model))))
            subprocess.run([options.llama, WORKER, "write", spec, gguf], check=True)
        depths = [int(depth) for depth in options.depth.split(",")]
        rows = [row for depth in depths for row in compare(options, gguf, depth)]
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
