"""Safetensors folders: whole or refused, and the layer count held against the config."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hf_prune.checkpoint import (
    INDEX,
    SINGLE,
    block_parameters,
    check_checkpoint,
    folder_digest,
    read_header,
    weight_files,
)
from hf_prune.errors import CheckpointError
from hf_prune.tensors import TensorEntry

from .making import edit_json
from .tiny import DEPTH, tiny_config, tiny_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    return tmp_path / "sharded"


def check(folder: Path) -> None:
    check_checkpoint(folder, AutoConfig.from_pretrained(folder), "org/model")


def drop_tensors(folder: Path, part: str) -> None:
    tensors = load_file(folder / SINGLE)
    save_file({name: t for name, t in tensors.items() if part not in name}, folder / SINGLE, {"format": "pt"})


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(load_file(folder / SINGLE) | named, folder / SINGLE, {"format": "pt"})


def write_safetensors(path: Path, header: bytes, body: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


def test_adapter_that_transformers_would_load_with_the_weights_is_refused(base: Path) -> None:
    (base / "adapter").mkdir()
    (base / "adapter" / "adapter_config.json").write_text("{}")
    check(base)  # it is not looked for there
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="'org/model' has an adapter beside its weights .adapter_config.json."):
        check(base)


def test_whole_checkpoints_pass(base: Path, sharded: Path) -> None:
    check(base)
    assert weight_files(base) == [base / SINGLE]
    check(sharded)
    shards = weight_files(sharded)
    assert len(shards) > 1 and shards == sorted(sharded.glob("model-*.safetensors"))
    tensors = load_file(base / SINGLE)
    header = read_header(base / SINGLE)
    assert {name: entry.shape for name, entry in header.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert sorted(name for path in shards for name in read_header(path)) == sorted(tensors)


def test_one_file_wins_over_shards_as_in_transformers(sharded: Path) -> None:
    save_file({"a": torch.zeros(1)}, sharded / SINGLE)
    assert weight_files(sharded) == [sharded / SINGLE]


@pytest.mark.parametrize("size", [0, 3, 8, 100, -1, -1000])
def test_truncated(base: Path, size: int) -> None:
    path = base / SINGLE
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(CheckpointError, match=rf"{SINGLE} is .*download it again"):
        check(base)


def test_truncated_shard_is_named(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[1]
    os.truncate(victim, victim.stat().st_size - 7)
    size = victim.stat().st_size
    with pytest.raises(
        CheckpointError, match=rf"{victim.name} is truncated: {size} bytes, its header promises {size + 7}"
    ):
        check(sharded)


def test_trailing_bytes(base: Path) -> None:
    with (base / SINGLE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="is too long"):
        check(base)


ENTRY = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        (ENTRY, 10**12, "promises a header of 1000000000000"),
        (ENTRY, len(ENTRY) + 5, "promises a header of|no safetensors header"),
        (b"not json at all", None, "no safetensors header"),
        (b"\xff\xfe\xfd\xfc", None, "no safetensors header"),
        (b"[1, 2]", None, "no safetensors header"),
        (b'{"a": 3}', None, "no safetensors header"),
        (b'{"a": {"dtype": "F32", "shape": [1]}}', None, "no safetensors header"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', None, "no safetensors header"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}}', None, "expected sizes"),
    ],
)
def test_broken_headers(tmp_path: Path, header: bytes, length: int | None, message: str) -> None:
    path = tmp_path / SINGLE
    write_safetensors(path, header, b"\0" * 4, length)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_header_by_hand(tmp_path: Path) -> None:
    write_safetensors(tmp_path / SINGLE, ENTRY, b"\0" * 4)
    assert read_header(tmp_path / SINGLE) == {"a": TensorEntry("a", "F32", (1,), SINGLE, 8 + len(ENTRY), 4)}
    write_safetensors(tmp_path / SINGLE, b'{"__metadata__":{"format":"pt"}}')
    assert read_header(tmp_path / SINGLE) == {}


def test_missing_shard(sharded: Path) -> None:
    victim = sorted(sharded.glob("model-*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(CheckpointError, match=rf"{INDEX} names \d+ shards; missing in .*{victim.name}"):
        check(sharded)


def test_index_without_metadata(sharded: Path) -> None:
    edit_json(sharded / INDEX, metadata=None)
    with pytest.raises(CheckpointError, match=rf"{INDEX} lacks 'metadata', without which transformers .* or add"):
        check(sharded)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": {"a": 3}}', b"\xff\xfe\0"],
)
def test_broken_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{INDEX} is not an index of shards|names 1 shards; missing in .*: 3"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.ckpt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=rf"only as pickles \({name}\), which can run code.*save_pretrained"):
        check(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"holds no weights; expected {SINGLE} or {INDEX}"):
        check(tmp_path)


@pytest.mark.parametrize("promised", [1, DEPTH - 1, DEPTH + 1, 99])
def test_config_of_another_depth(base: Path, promised: int) -> None:
    edit_json(base / "config.json", num_hidden_layers=promised)
    with pytest.raises(
        CheckpointError,
        match=rf"weights of 'org/model' hold {DEPTH} layers, its config says num_hidden_layers={promised}",
    ):
        check(base)


@pytest.mark.parametrize(("gone", "held"), [(f".{DEPTH - 1}.", DEPTH - 1), (".7.", 7)])
def test_weights_of_another_depth(base: Path, gone: str, held: int) -> None:
    drop_tensors(base, f"layers{gone}")
    with pytest.raises(CheckpointError, match=rf"hold {held} layers, its config says num_hidden_layers={DEPTH}"):
        check(base)


def test_gap_in_the_weights(base: Path) -> None:
    drop_tensors(base, "layers.3.")
    with pytest.raises(CheckpointError, match=r"weights of 'org/model' lack the layers 3 of"):
        check(base)


def test_prediction_layers_behind_the_last_are_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "mtp"
    tiny_model("deepseek_v3").save_pretrained(folder)
    add_tensors(folder, **{f"model__layers__{DEPTH}__eh_proj__weight": torch.zeros(2, 2)})
    edit_json(folder / "config.json", num_nextn_predict_layers=1)
    check(folder)
    add_tensors(folder, **{f"model__layers__{DEPTH + 1}__eh_proj__weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=rf"hold {DEPTH + 2} layers"):
        check(folder)
    edit_json(folder / "config.json", num_nextn_predict_layers=0)
    drop_tensors(folder, f"layers.{DEPTH + 1}.")
    with pytest.raises(CheckpointError, match=rf"hold {DEPTH + 1} layers"):
        check(folder)


@pytest.mark.parametrize("model_type", ["gpt2", "mpt", "bloom", "gpt_neox", "opt", "mamba", "mixtral", "lfm2"])
def test_layers_are_counted_in_every_layout(tmp_path: Path, model_type: str) -> None:
    tiny_model(model_type).save_pretrained(tmp_path)
    check(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = DEPTH + 1
    with pytest.raises(CheckpointError, match=f"hold {DEPTH} layers"):
        check_checkpoint(tmp_path, config, "org/model")


def test_digest_follows_config_header_size_and_time(base: Path) -> None:
    first = folder_digest(base)
    assert folder_digest(base) == first and len(first) == 64
    status = (base / SINGLE).stat()
    os.utime(base / SINGLE, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    later = folder_digest(base)
    os.utime(base / SINGLE, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert folder_digest(base) == first != later
    edit_json(base / "config.json", rms_norm_eps=1e-4)
    assert folder_digest(base) != first


def test_digest_reads_no_weights(base: Path) -> None:
    size = 2**42  # a sparse file: reading it would take hours
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    write_safetensors(base / SINGLE, header)
    os.truncate(base / SINGLE, 8 + len(header) + size)
    assert len(folder_digest(base)) == 64


def test_parameters_of_each_block_by_the_names_of_tensors():
    counts = {"model.layers.0.a": 1, "model.layers.1.a": 2, "model.layers.1.b": 3, "layers.2.mtp": 9, "head": 7}
    assert block_parameters(counts, 2) == (1, 5)
    assert block_parameters(counts, 4) is None, "a block that no tensor is of"
    assert block_parameters({"transformer.stages.0.a": 1}, 1) is None
    assert block_parameters(counts | {f"layers.{'9' * 5000}.a": 1}, 2) == (1, 5)
