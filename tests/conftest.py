"""Shared by all tests: no home directory, no network, no settings of the person who runs them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import save_file

if not torch.cuda.is_available():
    # Has to be said before Triton is imported for the first time: kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the processors, and so do the programs that they start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    # Shared by all tests and runs: compiling kernels takes longer than most tests.
    monkeypatch.setenv("XDG_CACHE_HOME", str(request.config.cache.mkdir("compiled")))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in list(os.environ):
        ours = name.startswith("RETROLOCAL_") and name != "RETROLOCAL_TEST_MATERIAL"
        # readline sets these two, and pytest's workers inherit them.
        if ours or name in ("COLUMNS", "LINES"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost")
        assert local, f"a test opened a connection to {address}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def material() -> Path:
    """Real tokenizers, configurations and texts, outside the repository."""
    folder = os.environ.get("RETROLOCAL_TEST_MATERIAL")
    if not folder:
        pytest.skip("RETROLOCAL_TEST_MATERIAL is not set: checks on real material left out")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a byte tokenizer and a chat template, Hub layout."""
    folder = tmp_path_factory.mktemp("tiny-model")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def triton_device() -> torch.device:
    """Where Triton kernels run: the GPU, or without one the interpreter."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        return torch.device("cuda")
    from triton.runtime import interpreter

    make = interpreter._patch_lang_tensor

    def patched(tensor: Any, *scope: Any) -> None:
        """Triton 3.6 takes a loop's bounds from arrays in a way that NumPy 2.4 no longer has."""
        make(tensor, *scope)

        def index(self: Any) -> int:
            return int(self.handle.data.item())

        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patched
    return torch.device("cpu")


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 257,
}
TINY_TEMPLATE = (
    "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tiny_model(folder: Path) -> None:
    torch.manual_seed(0)
    hidden, inner, heads, kv = 48, 64, 4 * 16, 2 * 16
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (259, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(2):
        at = f"model.layers.{layer}."
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"{at}{name}.weight"] = shape
    weights = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.3
        for name, shape in shapes.items()
    }
    # Rows of zero are never the likeliest: greedy replies are plain ASCII.
    unlikely = [i for c, i in _byte_vocabulary().items() if not "!" <= c <= "~"]
    weights["model.embed_tokens.weight"][unlikely] = 0
    save_file(weights, folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unused>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(TINY))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": TINY_TEMPLATE})
    )


def _byte_vocabulary() -> dict[str, int]:
    return {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
