"""Loading, and everything that can be wrong with a folder of weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrolocal.errors import WeightsError
from retrolocal.models import FAMILIES, ModelConfig, read_config
from retrolocal.models.checkpoint import read_checkpoint, read_header
from retrolocal.models.decoder import Decoder
from retrolocal.models.weights import checkpoint_bytes, checkpoint_dtype, load_decoder

CPU = torch.device("cpu")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = "model.layers.1.self_attn.q_proj.weight"

Tensors = dict[str, torch.Tensor]


def random_tensors(config: ModelConfig) -> Tensors:
    torch.manual_seed(0)
    family = FAMILIES[config.family]
    return {
        family.checkpoint_name(name): torch.randn_like(value) * 0.1
        for name, value in Decoder(config).named_parameters()
    }


@pytest.fixture
def folder(write_config: Any) -> Path:
    path: Path = write_config()
    save_file(random_tensors(read_config(path)), path / SINGLE)
    return path


def change(folder: Path, edit: Callable[[Tensors], object]) -> Path:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)
    return folder


def shard(folder: Path, count: int = 3) -> dict[str, str]:
    """Splits model.safetensors into shards with an index; answers the weight map."""
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    placed = {name: files[i % count] for i, name in enumerate(tensors)}
    for file in files:
        save_file({n: t for n, t in tensors.items() if placed[n] == file}, folder / file)
    write_index(folder, placed)
    return placed


def write_index(folder: Path, placed: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def load(folder: Path, dtype: torch.dtype | None = None, progress: Any = None) -> Decoder:
    config = read_config(folder)
    return load_decoder(folder, config, dtype=dtype, device=CPU, progress=progress)


def refusal(folder: Path, dtype: torch.dtype | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        load(folder, dtype)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 900
    return message


def test_every_parameter_is_the_tensor_of_the_file(folder: Path) -> None:
    stored = load_file(folder / SINGLE)
    decoder = load(folder)
    parameters = dict(decoder.named_parameters())
    assert len(parameters) == len(stored)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, stored[FAMILIES["llama"].checkpoint_name(name)])
        assert not parameter.requires_grad
        assert parameter.is_contiguous()
    assert not decoder.training


def test_shards_give_the_same(folder: Path) -> None:
    whole = load(folder).state_dict()
    total = checkpoint_bytes(folder)
    shard(folder)
    assert checkpoint_bytes(folder) == total
    parts = load(folder).state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_progress_is_in_bytes_of_the_checkpoint(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    load(folder, torch.bfloat16, lambda done, total: calls.append((done, total)))
    total = checkpoint_bytes(folder)
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert total == sum(t.numel() * 4 for t in load_file(folder / SINGLE).values())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("asked", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(folder: Path, stored: torch.dtype, asked: torch.dtype | None) -> None:
    def cast(tensors: Tensors) -> None:
        tensors.update({n: t.to(stored) for n, t in tensors.items() if t.dim() == 2})

    change(folder, cast)
    assert checkpoint_dtype(folder, read_config(folder)) == stored
    kinds = {parameter.dtype for parameter in load(folder, asked).parameters()}
    assert kinds == {asked or stored}


def test_headers_are_enough_for_size_and_dtype(folder: Path) -> None:
    path = folder / SINGLE
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path.write_bytes(content[: 8 + length] + bytes(len(content) - 8 - length))
    assert checkpoint_bytes(folder) == len(content) - 8 - length
    assert checkpoint_dtype(folder, read_config(folder)) == torch.float32


def test_leftovers_are_ignored(folder: Path) -> None:
    change(
        folder,
        lambda t: t.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": t["model.norm.weight"].clone()}
        ),
    )
    load(folder)


def test_a_tied_head_is_the_embedding(write_config: Any) -> None:
    path = write_config(tie_word_embeddings=True)
    tensors = random_tensors(read_config(path))
    assert "lm_head.weight" not in tensors
    save_file(tensors, path / SINGLE)
    load(path)
    save_file(tensors | {"lm_head.weight": torch.zeros(131, 48)}, path / SINGLE)
    assert load(path).head is None


def test_missing_unexpected_and_misshaped_are_told_together(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        del tensors[QUERY]
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)
        tensors["model.norm.weight"] = torch.zeros(47)

    message = refusal(change(folder, edit))
    assert f"1 missing ({QUERY})" in message
    assert "1 unexpected (model.layers.0.self_attn.q_proj.bias)" in message
    assert "1 of another shape (model.norm.weight is [47] instead of [48])" in message


def test_long_lists_are_cut(folder: Path) -> None:
    message = refusal(change(folder, lambda t: [t.pop(n) for n in list(t) if "layers.1" in n]))
    assert "9 missing" in message
    assert "and 4 more" in message


def test_a_head_that_is_absent_is_missing(folder: Path) -> None:
    assert "1 missing (lm_head.weight)" in refusal(
        change(folder, lambda t: t.pop("lm_head.weight"))
    )


def test_hostile_names_stay_on_one_line(folder: Path) -> None:
    name = "x\n\x1b[2J" + "y" * 500
    message = refusal(change(folder, lambda t: t.update({name: torch.zeros(1)})))
    assert "\x1b" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_weight_that_is_not_finite(folder: Path, value: float, dtype: torch.dtype) -> None:
    def edit(tensors: Tensors) -> None:
        tensors.update({name: t.to(dtype) for name, t in tensors.items()})
        tensors[QUERY][3, 5] = value

    message = refusal(change(folder, edit))
    assert f"{QUERY} holds NaN or infinite weights" in message
    assert "NaN or infinite" in refusal(folder, torch.float32)


def test_a_weight_too_large_for_the_dtype(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors[QUERY][3, 5] = -70000.0

    change(folder, edit)
    load(folder, torch.bfloat16)
    message = refusal(folder, torch.float16)
    assert f"{QUERY} does not fit into float16" in message
    assert "70000" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64], ids=str)
def test_other_dtypes_are_refused_by_name(folder: Path, dtype: torch.dtype) -> None:
    message = refusal(change(folder, lambda t: t.update({QUERY: t[QUERY].to(dtype)})))
    names = {torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3", torch.float64: "F64"}
    assert f"{QUERY} has dtype '{names[dtype]}'" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"abc", "too short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\n<html><body>404</body></html>", "web page"),
        (b"\xff" * 64, "not a safetensors file"),
        (struct.pack("<Q", 1 << 30) + b"{}", "not a safetensors file"),
        (struct.pack("<Q", 1000) + b"{}", "cut short within its header"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "not UTF-8"),
        (struct.pack("<Q", 4) + b"[1]{", "not valid JSON"),
        (struct.pack("<Q", 4) + b"[12]", "holds a list"),
    ],
    ids=[
        "empty",
        "short",
        "lfs",
        "html",
        "html-2",
        "garbage",
        "giant",
        "cut",
        "bytes",
        "json",
        "list",
    ],
)
def test_a_file_that_is_not_safetensors(folder: Path, content: bytes, words: str) -> None:
    (folder / SINGLE).write_bytes(content)
    assert words in refusal(folder)
    with pytest.raises(WeightsError):
        checkpoint_bytes(folder)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": 32, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    ],
    ids=repr,
)
def test_a_header_that_lies(folder: Path, entry: object) -> None:
    header = json.dumps({QUERY: entry}).encode()
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short(folder: Path, share: float) -> None:
    path = folder / SINGLE
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path.write_bytes(content[: 8 + length + int((len(content) - 8 - length) * share)])
    assert "cut short" in refusal(folder)


def test_a_file_with_holes_is_refused_by_the_library(folder: Path) -> None:
    with (folder / SINGLE).open("ab") as file:
        file.write(b"more")
    assert "cannot be read" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "1 of 3 weight files are missing: model-00002-of-00003" in refusal(folder)


def test_a_damaged_shard_is_named(folder: Path) -> None:
    shard(folder)
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert path.name in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../other/model.safetensors",
        "/etc/x.safetensors",
        "a\\b.safetensors",
        "c:x.safetensors",
        "",
        "..",
        "model.bin",
        "x\0.safetensors",
        3,
        None,
        ["model.safetensors"],
    ],
)
def test_an_index_names_plain_files_only(folder: Path, name: object) -> None:
    placed = shard(folder)
    write_index(folder, placed | {QUERY: name})
    assert "weight_map" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, []])
def test_an_index_without_names(folder: Path, index: object) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps(index))
    assert INDEX in refusal(folder)


def test_an_index_that_names_too_much(folder: Path) -> None:
    placed = shard(folder)
    write_index(folder, placed | {"extra.weight": next(iter(placed.values()))})
    assert "do not hold: extra.weight" in refusal(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no model.safetensors in it"),
        (["pytorch_model.bin"], "a pickle (pytorch_model.bin), which is not read"),
        (["consolidated.00.pth"], "a pickle"),
        (["model-Q4_K_M.gguf"], "GGUF (model-Q4_K_M.gguf), which is not read"),
        (["consolidated.safetensors"], "neither model.safetensors nor"),
    ],
    ids=["none", "bin", "pth", "gguf", "other"],
)
def test_a_folder_without_safetensors(folder: Path, files: list[str], words: str) -> None:
    (folder / SINGLE).unlink()
    for file in files:
        (folder / file).write_bytes(b"x")
    assert words in refusal(folder)


@pytest.mark.parametrize("target", ["model.safetensors", "gone"])
def test_a_link_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(target)
    with pytest.raises(WeightsError, match=r"model.safetensors: cannot be read \((Too|No) "):
        read_checkpoint(tmp_path)


def test_a_link_that_leads_nowhere_beside_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors").symlink_to("gone")
    names = read_header(folder / "model-1.safetensors")
    placed = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(placed))
    assert read_checkpoint(folder).keys() == names.keys()


def test_a_folder_in_place_of_the_file(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()
    assert "cannot be read" in refusal(folder)


def test_a_tied_checkpoint_may_hold_the_output_matrix_only(
    make_checkpoint: Any, make_caches: Any
) -> None:
    checkpoint = make_checkpoint("llama", tie_word_embeddings=True)
    path = checkpoint.folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path)
    config = read_config(checkpoint.folder)
    decoder = load_decoder(
        checkpoint.folder, config, dtype=torch.float32, device=torch.device("cpu")
    )
    ids = torch.arange(7)
    logits = decoder(ids, ids, make_caches(config), 7)
    torch.testing.assert_close(logits, checkpoint.logits(ids), atol=1e-4, rtol=0)
