"""llama.cpp's side of `compare_llama_cpp.py`: a GGUF of random weights, and timed decoding.

Runs in an environment of its own that has `llama-cpp-python` and `gguf`, and only them:

    python llama_cpp_worker.py write SPEC.json MODEL.gguf
    python llama_cpp_worker.py serve MODEL.gguf --depth N -n N -t N --flash on|off

`serve` fills the cache, prints a line that says so, and then, for every line that it reads, decodes
so many tokens one by one from that depth on and prints how many that were in a second.

A depth is reached with public calls only: a real prompt of at most `PROMPT` tokens is decoded, then
its cells are copied and moved behind themselves until there are enough. Speed depends on how many
there are, not on what is in them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = 512
BLOCK = 1_048_583
"""Random numbers that are repeated through all weights."""


def write(spec: dict[str, Any], path: Path) -> None:
    """The architecture that `spec` tells, as an F16 GGUF without a vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(spec["vocab_size"])
    writer.add_context_length(spec["max_positions"])
    writer.add_embedding_length(spec["hidden_size"])
    writer.add_block_count(spec["layers"])
    writer.add_feed_forward_length(spec["intermediate_size"])
    writer.add_head_count(spec["heads"])
    writer.add_head_count_kv(spec["kv_heads"])
    writer.add_key_length(spec["head_dim"])
    writer.add_value_length(spec["head_dim"])
    writer.add_rope_dimension_count(spec["head_dim"])
    writer.add_rope_freq_base(spec["rope_theta"])
    writer.add_layer_norm_rms_eps(spec["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    block = np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = np.resize((block * columns**-0.5).astype(np.float16), (rows, columns))
        writer.add_tensor(name, values)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(spec["hidden_size"], np.float32))

    hidden, inner = spec["hidden_size"], spec["intermediate_size"]
    queries, keys = (spec[name] * spec["head_dim"] for name in ("heads", "kv_heads"))
    matrix("token_embd.weight", spec["vocab_size"], hidden)
    ones("output_norm.weight")
    if not spec["tied"]:
        matrix("output.weight", spec["vocab_size"], hidden)
    # What each frequency is divided by, which is how a GGUF holds Llama 3's scaling.
    writer.add_tensor("rope_freqs.weight", np.array(spec["rope_factors"], np.float32))
    for layer in range(spec["layers"]):
        name = f"blk.{layer}"
        ones(f"{name}.attn_norm.weight")
        ones(f"{name}.ffn_norm.weight")
        matrix(f"{name}.attn_q.weight", queries, hidden)
        matrix(f"{name}.attn_k.weight", keys, hidden)
        matrix(f"{name}.attn_v.weight", keys, hidden)
        matrix(f"{name}.attn_output.weight", hidden, queries)
        matrix(f"{name}.ffn_gate.weight", inner, hidden)
        matrix(f"{name}.ffn_up.weight", inner, hidden)
        matrix(f"{name}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Context:
    """One model with one context, 16-bit keys and values."""

    def __init__(self, path: Path, *, positions: int, threads: int, flash: bool) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(_log)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = -(-positions // 256) * 256
        options.n_batch = options.n_ubatch = PROMPT
        options.n_seq_max, options.kv_unified = 2, True
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = 1 if flash else 0
        self.context = llama_cpp.llama_init_from_model(model, options)
        if not model or not self.context:
            sys.exit(f"llama.cpp could not open {path}: its messages are above")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._random = np.random.default_rng(1)

    @property
    def tokens(self) -> int:
        """In the cache."""
        return 1 + int(self.api.llama_memory_seq_pos_max(self.memory, 0))

    def decode(self, count: int) -> float:
        """Seconds until `count` random tokens, at once, are in the cache and logits are there."""
        ids = self._random.integers(self._words, size=count).astype(np.int32)
        pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        began = time.perf_counter()
        failed = self.api.llama_decode(self.context, self.api.llama_batch_get_one(pointer, count))
        self.api.llama_synchronize(self.context)
        seconds = time.perf_counter() - began
        if failed:
            sys.exit(f"llama_decode returned {failed} at {self.tokens:,} tokens")
        return seconds

    def keep(self, tokens: int) -> None:
        """Forgets all but the first `tokens`."""
        self.api.llama_memory_seq_rm(self.memory, 0, tokens, -1)

    def fill(self, depth: int) -> None:
        """An empty cache holds `depth` tokens."""
        if depth:
            self.decode(min(depth, PROMPT))
        while self.tokens < depth:
            self._repeat(min(self.tokens, depth - self.tokens))
        assert self.tokens == depth, f"{self.tokens} cells, not {depth}"

    def _repeat(self, count: int) -> None:
        """The first `count` tokens once more, behind the last."""
        api, memory, behind = self.api, self.memory, self.tokens
        size = api.llama_state_seq_get_size(self.context, 0)
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        read = api.llama_state_seq_get_data(self.context, pointer, size, 0)
        if read != size or api.llama_state_seq_set_data(self.context, pointer, size, 1) != size:
            sys.exit(f"llama.cpp did not copy {behind:,} cells: there is no room, or it cannot")
        api.llama_memory_seq_rm(memory, 1, count, -1)
        api.llama_memory_seq_add(memory, 1, 0, -1, behind)
        api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
        api.llama_memory_seq_rm(memory, 1, -1, -1)
        # A step applies what was moved: keys are turned to their new positions.
        self.decode(1)
        self.keep(behind + count)


def _log(level: int, text: bytes, _: object) -> None:
    if level >= 4:  # errors; 5 continues a line
        sys.stderr.write(text.decode(errors="replace"))


def serve(arguments: argparse.Namespace) -> None:
    positions = arguments.depth + max(arguments.tokens, PROMPT)
    context = Context(
        arguments.model,
        positions=positions,
        threads=arguments.threads,
        flash=arguments.flash == "on",
    )
    context.fill(arguments.depth)
    context.decode(1)
    context.keep(arguments.depth)
    _say({"ready": context.api.__version__, "tokens": context.tokens})
    for _ in sys.stdin:
        seconds = sum(context.decode(1) for _ in range(arguments.tokens))
        context.keep(arguments.depth)
        _say(arguments.tokens / seconds)


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    writing = commands.add_parser("write")
    writing.add_argument("spec", type=Path)
    writing.add_argument("model", type=Path)
    serving = commands.add_parser("serve")
    serving.add_argument("model", type=Path)
    serving.add_argument("--depth", type=int, required=True)
    serving.add_argument("-n", "--tokens", type=int, required=True)
    serving.add_argument("-t", "--threads", type=int, required=True)
    serving.add_argument("--flash", choices=("on", "off"), required=True)
    arguments = parser.parse_args()
    if arguments.command == "write":
        write(json.loads(arguments.spec.read_text()), arguments.model)
    else:
        serve(arguments)


if __name__ == "__main__":
    main()
