"""Safetensors files before their bytes are there: which tensor goes into which file, and where in it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from hf_prune.checkpoint import INDEX
from hf_prune.errors import ConfigError
from hf_prune.tensors import DTYPES, TensorEntry

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*((?:[KMGT]B)?)\s*", re.IGNORECASE)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Shard:
    """One safetensors file to be.

    Attributes:
        file: its name.
        header: its first bytes: the length of the header, and the header.
        entries: the tensors, in the order in which they lie.
        size: bytes of the whole file.
    """

    file: str
    header: bytes
    entries: tuple[TensorEntry, ...]
    size: int


def shard_limit(max_shard_size: str | int) -> int:
    """Bytes of "5GB" (10^9 each) or "700 KB", or of a plain number, as `save_pretrained` takes them.

    Raises:
        ConfigError: it is no size, or none above zero.
    """
    found = _SIZE.fullmatch(str(max_shard_size))
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found is not None else 0
    if size < 1:
        raise ConfigError(f"max_shard_size={max_shard_size!r}; expected a size such as 5GB, 500MB or 700KB")
    return size


def lay_out(
    tensors: Mapping[str, torch.Tensor], max_shard_size: str, place: Callable[[str], Any] = lambda name: name
) -> list[Shard]:
    """Divide tensors into files as `save_pretrained` does.

    Args:
        tensors: on any device (meta too) and in the order of a state dict; their dtypes and shapes are what counts.
        max_shard_size: bytes of tensors in one file at most, such as "5GB"; a larger tensor gets a file of its own.
        place: sorts the tensors of one file; wider dtypes come first, so that each lies at a multiple of its width.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_limit(max_shard_size),
    )
    return [_shard(file, tensors, names, place) for file, names in split.filename_to_tensors.items()]


def _shard(file: str, tensors: Mapping[str, torch.Tensor], names: list[str], place: Callable[[str], Any]) -> Shard:
    ordered = sorted(names, key=lambda name: (-tensors[name].itemsize, place(name)))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in ordered:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    first = 8 + len(raw)
    entries = []
    for name in ordered:
        told = header[name]
        begin, end = told["data_offsets"]
        entries.append(TensorEntry(name, told["dtype"], tuple(told["shape"]), file, first + begin, end - begin))
    return Shard(file, len(raw).to_bytes(8, "little") + raw, tuple(entries), first + start)


def index_text(shards: Sequence[Shard], parameters: int) -> str:
    """The content of the index of shards, as `save_pretrained` writes it.

    Args:
        shards: all of them.
        parameters: of the model, tied ones once.
    """
    metadata = {"total_parameters": parameters, "total_size": sum(e.size for s in shards for e in s.entries)}
    weight_map = {entry.name: shard.file for shard in shards for entry in shard.entries}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def index_file(shards: Sequence[Shard]) -> str | None:
    """Name of the index; None where one file holds everything."""
    return INDEX if len(shards) > 1 else None
