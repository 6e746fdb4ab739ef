"""Where tensors go in new files: divided as `save_pretrained` divides them, and read by the safetensors library."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hf_prune.checkpoint import checkpoint_entries
from hf_prune.errors import ConfigError
from hf_prune.shards import Shard, index_file, index_text, lay_out, shard_limit

from . import making  # noqa: F401 (the profile of hypothesis)

TENSORS = st.dictionaries(
    st.text('ab.é0"\\', min_size=1, max_size=6),
    st.tuples(
        st.lists(st.integers(0, 5), max_size=3),
        st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.int64, torch.float8_e4m3fn, torch.bool]),
    ),
    min_size=1,
    max_size=12,
)


def write(shards: list[Shard], folder: Path, parameters: int = 0) -> None:
    for shard in shards:
        assert len(shard.header) % 8 == 0
        with (folder / shard.file).open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.size)
    name = index_file(shards)
    if name is not None:
        (folder / name).write_text(index_text(shards, parameters))


@settings(max_examples=40)
@given(TENSORS, st.integers(1, 200))
def test_files_are_read_back_and_divided_as_transformers_does(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[list[int], torch.dtype]], largest: int
) -> None:
    folder = tmp_path_factory.mktemp("out")
    state = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in tensors.items()}
    limit = f"{largest / 1000}KB"
    shards = lay_out(state, limit)
    real = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in state.items()}
    split = split_torch_state_dict_into_shards(
        real, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    if all(
        tensor.numel() for tensor in state.values()
    ):  # empty ones pass for one tensor there, as they share no bytes
        assert {s.file: {e.name for e in s.entries} for s in shards} == {
            file: set(names) for file, names in split.filename_to_tensors.items()
        }
    write(shards, folder)
    assert checkpoint_entries(folder) == {e.name: e for s in shards for e in s.entries}
    for shard in shards:
        for entry in shard.entries:
            assert entry.start % entry.torch_dtype.itemsize == 0
        with safe_open(folder / shard.file, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 (a safetensors handle, not a dict)
                assert (file.get_tensor(name).shape, file.get_tensor(name).dtype) == (
                    state[name].shape,
                    state[name].dtype,
                )


def test_neighbours_stay_neighbours() -> None:
    state = {name: torch.empty(2, device="meta") for name in "abcd"}
    (shard,) = lay_out(state, "1GB", {"a": 3, "b": 1, "c": 2, "d": 0}.__getitem__)
    assert [e.name for e in shard.entries] == ["d", "b", "c", "a"]
    assert shard.size == len(shard.header) + 4 * 8


def test_index(tmp_path: Path) -> None:
    shards = lay_out({name: torch.empty(100, device="meta") for name in "ba"}, "0.5KB")
    assert [s.file for s in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert json.loads(index_text(shards, 200)) == {
        "metadata": {"total_parameters": 200, "total_size": 800},
        "weight_map": {"b": shards[0].file, "a": shards[1].file},
    }
    assert index_file(shards[:1]) is None


@pytest.mark.parametrize(
    ("size", "bytes_"), [("5GB", 5 * 10**9), ("1.5 mb", 1500000), ("0.5KB", 500), ("7", 7), (7, 7)]
)
def test_sizes(size: str | int, bytes_: int) -> None:
    assert shard_limit(size) == bytes_


@pytest.mark.parametrize("size", ["5 elephants", "GB", "", "0", "0GB", "-1GB", "infGB", "nanGB", "5GiB", "1e3KB"])
def test_no_size(size: str) -> None:
    with pytest.raises(ConfigError, match="max_shard_size='.*expected a size such as 5GB"):
        lay_out({"a": torch.empty(1, device="meta")}, size)
