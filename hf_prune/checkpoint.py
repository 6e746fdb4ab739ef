"""Safetensors checkpoints as files: are they whole, and do they fit their config? Headers alone are read."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig

from hf_prune.architecture import layer_count
from hf_prune.errors import CheckpointError
from hf_prune.tensors import TensorEntry, header_length, parse_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_ADAPTER = "adapter_config.json"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in `folder`, in name order.

    Raises:
        CheckpointError: there are none (pickles are refused), or the index names files that are missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if index.is_file():
        try:
            told = json.loads(index.read_text(encoding="utf-8"))
            names = sorted({str(v) for v in told["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is not an index of shards ({error!r}); download it again") from error
        if not names:
            raise CheckpointError(f"{index} is not an index of shards (it names none); download it again")
        outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
        if outside:
            raise CheckpointError(f"{index.name} names shards outside of the folder: {', '.join(outside[:3])}")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index.name} names {len(names)} shards; missing in {folder}: {', '.join(missing)}")
        if not isinstance(told.get("metadata"), dict):
            raise CheckpointError(
                f"{index} lacks 'metadata', without which transformers does not load it; download it again, or add "
                '"metadata": {} to it'
            )
        return [folder / name for name in names]
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds weights only as pickles ({', '.join(pickles[:3])}), which can run code when loaded; "
            f"expected {SINGLE}. Convert them once with transformers: "
            "AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)"
        )
    raise CheckpointError(f"{folder} holds no weights; expected {SINGLE} or {INDEX}")


def read_header(path: Path, name: str | None = None) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, in the order in which they lie in it.

    Args:
        path: the file.
        name: what entries call it; its own name when None.

    Raises:
        CheckpointError: the file is truncated, or its header is none, lies, or disagrees with the file's length.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(8), size, str(path))
        raw = file.read(length)
    return parse_header(raw, size, str(path), name or path.name)


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The dtype that transformers loads a checkpoint in whose config names none: its first one of a floating type.

    Returns:
        None where the weights are not here.
    """
    try:
        files = weight_files(folder)
    except CheckpointError:  # of a model on the Hub they may come later, or never
        return None
    dtypes = (entry.torch_dtype for _, entry in sorted(read_header(files[0]).items()))
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)


def checkpoint_entries(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint, shard by shard.

    Raises:
        CheckpointError: a file is broken, a tensor lies in two shards, or index and shards disagree.
    """
    found: dict[str, TensorEntry] = {}
    for path in weight_files(folder):
        add_shard(found, read_header(path, path.relative_to(folder).as_posix()))
    if not (folder / SINGLE).is_file():
        check_index(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"], found)
    return found


def add_shard(found: dict[str, TensorEntry], shard: Mapping[str, TensorEntry]) -> None:
    """Add a shard's tensors to those of the shards before.

    Raises:
        CheckpointError: a tensor lies in two shards.
    """
    for name, entry in shard.items():
        if name in found:
            raise CheckpointError(
                f"tensor '{name}' lies in two shards, {found[name].file} and {entry.file}; expected one. "
                "Download both again"
            )
        found[name] = entry


def check_index(weight_map: Mapping[str, str], found: Mapping[str, TensorEntry]) -> None:
    """Hold an index of shards against what lies in them.

    Args:
        weight_map: name of each tensor, and the file that the index says it is in.
        found: what the headers of the shards say.

    Raises:
        CheckpointError: the index names a tensor that is not there, another file, or leaves one out.
    """
    for name, file in weight_map.items():
        if name not in found:
            raise CheckpointError(
                f"{INDEX} says that tensor '{name}' is in {file}, where it is not; download both again"
            )
        if found[name].file != file:
            raise CheckpointError(
                f"{INDEX} says that tensor '{name}' is in {file}; it lies in {found[name].file}. Download both again"
            )
    if unnamed := sorted(found.keys() - weight_map.keys()):
        raise CheckpointError(
            f"{INDEX} leaves out {len(unnamed)} tensors of its shards, such as '{unnamed[0]}' in "
            f"{found[unnamed[0]].file}; download it again"
        )


def block_parameters(counts: Mapping[str, int], depth: int) -> tuple[int, ...] | None:
    """Parameters of each block, by the names of tensors alone.

    Args:
        counts: name of each tensor, and how many numbers it holds.
        depth: blocks that there are; what lies behind them is passed by.

    Returns:
        One count a block; None where the names don't tell them apart.
    """
    found = [0] * depth
    for name, count in counts.items():
        number = _BLOCK.search(name)
        if number is not None and int(number[1]) < depth:
            found[int(number[1])] += count
    return tuple(found) if found and all(found) else None


def check_checkpoint(
    folder: Path, config: PretrainedConfig, name: str, tensors: Collection[str] | None = None
) -> None:
    """Refuse weights that are broken or disagree with the config's layer count, before they are loaded.

    Args:
        folder: of the checkpoint.
        config: its text config.
        name: what the model is called in errors.
        tensors: their names, where the weights lie elsewhere.

    Raises:
        CheckpointError: names the file or the key.
    """
    if (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"'{name}' has an adapter beside its weights ({_ADAPTER}), which transformers would load with them; merge "
            "it into the weights, or move it to another folder"
        )
    if tensors is None:
        tensors = [tensor for path in weight_files(folder) for tensor in read_header(path)]
    numbers = {int(found[1]) for tensor in tensors if (found := _BLOCK.search(tensor))}
    depth = layer_count(config)
    # Prediction layers behind the last block (multi-token prediction) are stored at index L and up, and never loaded.
    # Some configs know their number under both names.
    extra = max(int(getattr(config, key, 0) or 0) for key in ("num_nextn_predict_layers", "num_mtp_layers"))
    if not numbers:
        return
    if max(numbers) + 1 not in range(depth, depth + extra + 1):
        raise CheckpointError(
            f"the weights of '{name}' hold {max(numbers) + 1} layers, its config says num_hidden_layers={depth}; "
            "correct the one that is wrong (transformers would fill missing layers with random weights)"
        )
    missing = sorted(set(range(depth)) - numbers)
    if missing:
        raise CheckpointError(
            f"the weights of '{name}' lack the layers {', '.join(map(str, missing))} of {depth} (transformers "
            "would fill them with random weights); download them again"
        )


def folder_digest(folder: Path) -> str:
    """The sha256 that stands for a local checkpoint: config, and name, size, time and header of each weight file.

    The weights themselves are never read in full.
    """
    total = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        status = path.stat()
        total.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        total.update(json.dumps(_as_written(read_header(path)), sort_keys=True).encode())
    return total.hexdigest()


def _as_written(header: Mapping[str, TensorEntry]) -> dict[str, object]:
    """The header as the file has it: offsets count from the first tensor."""
    first = min((entry.start for entry in header.values()), default=0)
    return {
        entry.name: {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start - first, entry.start - first + entry.size],
        }
        for entry in header.values()
    }
