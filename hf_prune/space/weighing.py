"""What a model on the Hub would take in memory, by its config and the headers of its weights: none are downloaded."""

import json
import re
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from hf_prune import hub_pull, loading
from hf_prune.architecture import check_causal, layer_count
from hf_prune.checkpoint import block_parameters
from hf_prune.errors import ArchitectureError, CheckpointError, PruneError
from hf_prune.healing.adapter import CONFIG
from hf_prune.hub_files import INDEX, SINGLE, matches
from hf_prune.precision import faster_dtype
from hf_prune.space import settings
from hf_prune.space.asking import Repo, asking, hub
from hf_prune.space.ids import shown, without_paths
from hf_prune.space.pair import Half, Visitor
from hf_prune.space.repo_records import small_files

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_MOST_CONFIG, _MOST_INDEX, _MOST_COMPANION = 10**6, 32 * 10**6, 64 * 10**6
_MOST_BESIDE = 4 * _MOST_COMPANION
_MOST_SHARDS, _MOST_TENSORS, _MOST_HEADER = 256, 10**5, 32 * 10**6
_MOST_COUNT = 4096
"""Largest `num_…` of a config: layers, heads, experts. Each is a loop of transformers."""

_COUNTED = re.compile(r"num_|n_layers?$|n_heads?$|attention_types$")

_COMPUTED = re.compile(r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$")
"""Tensors that old checkpoints store and models compute by themselves; biases of attention have one dimension."""

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Weighed:
    """A model as its files describe it.

    Attributes:
        half: what the pair says of it.
        model_type: of its config.
    """

    half: Half
    model_type: str


_known: OrderedDict[tuple[str, str], Weighed] = OrderedDict()
_lock = threading.Lock()


def weigh(repo: Repo, visitor: Visitor) -> Weighed:
    """What a model would take; asked of the Hub once a commit.

    Args:
        repo: as this visitor found it just now.
        visitor: who asks.

    Raises:
        ArchitectureError: it is no causal language model, or needs code from its repo.
        CheckpointError: it has no safetensors weights, or is broken.
        HubError: it cannot be downloaded.
    """
    key = (repo.name, repo.commit)
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    found = _weigh(repo, visitor)
    with _lock:
        _known[key] = found
        while len(_known) > 256:
            _known.popitem(last=False)
    return found


def _weigh(repo: Repo, visitor: Visitor) -> Weighed:
    _check_files(repo)
    folder = small_files(repo, ["config.json"], visitor, _MOST_CONFIG)
    config = read_config(folder, repo.name).get_text_config(decoder=True)
    tensors = _headers(repo, visitor)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else _most_common(tensors)
    unknown = [tensor.dtype for tensor in tensors.values() if tensor.dtype not in _DTYPES and _is_weight(tensor)]
    if dtype not in _DTYPES.values() or unknown or getattr(config, "quantization_config", None):
        raise CheckpointError(
            f"the weights of '{repo.name}' are quantized ({shown(unknown[0] if unknown else 'by its config', 24)}); "
            "expected float32, bfloat16 or float16: pick a model with plain weights"
        )
    dtype = faster_dtype(torch.device(settings.device()), dtype)
    counts = _parameters(tensors, bool(getattr(config, "tie_word_embeddings", False)))
    total, layers = sum(counts.values()), layer_count(config)
    half = Half(
        name=repo.name,
        commit=repo.commit,
        layers=layers,
        parameters=total,
        bytes=total * dtype.itemsize,
        dtype=str(dtype).removeprefix("torch."),
        layer_parameters=block_parameters(counts, layers),
    )
    return Weighed(half, config.model_type)


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """The config of a downloaded model; nothing that it asks to be run is run.

    Raises:
        ArchitectureError: it needs code, is unknown here, or is no causal language model.
        CheckpointError: it is broken, or has sizes that no model has.
    """
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json of '{name}' is not JSON: {shown(error, 120)}") from None
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind is not None and "auto_map" in raw and not loading.is_known(kind):
        raise ArchitectureError(
            f"'{name}' (model_type '{shown(kind, 40)}') needs code from its repo to be loaded. The page never runs "
            "code of a repo; expected an architecture that transformers knows, or one that hf-prune has sliced"
        )
    _check_values(raw, name)
    try:
        config = loading.read_config(folder, name)
        check_causal(config, name)
    except PruneError as error:
        raise type(error)(shown(without_paths(str(error), name), 400)) from None
    except Exception as error:  # whatever a stranger's config makes transformers raise
        raise CheckpointError(
            f"config.json of '{name}' is refused: {shown(without_paths(str(error), name), 200)}"
        ) from None
    return config


def _check_values(value: Any, name: str, key: str = "", depth: int = 0) -> None:
    """Refuse numbers that would keep transformers busy for hours, and names by which it would fetch code."""
    if depth > 32:
        raise CheckpointError(f"config.json of '{name}' is nested more than 32 times; expected the config of a model")
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_values(item, name, str(inner), depth + 1)
    elif isinstance(value, list) and not (value and all(type(item) is int for item in value)):
        for item in value:
            _check_values(item, name, key, depth + 1)
    elif isinstance(value, int) and _COUNTED.match(key) and value > _MOST_COUNT:
        raise CheckpointError(
            f"'{shown(key, 40)}' in config.json of '{name}' is above {_MOST_COUNT}; no model has that"
        )
    elif isinstance(value, str) and "implementation" in key and "/" in value:
        raise ArchitectureError(
            f"'{shown(key, 40)}' in config.json of '{name}' names code on the Hub, '{shown(value, 60)}'. The page "
            "never runs code of a repo; expected a model that needs none"
        )


def _check_files(repo: Repo) -> None:
    """Refuse by the names and sizes of files alone what cannot be opened.

    Raises:
        CheckpointError: no config, pickles only, an adapter in a model's place, or a file of a size it can't have.
    """
    names = repo.files
    if CONFIG in names:
        raise CheckpointError(f"'{repo.name}' is an adapter ('{CONFIG}'); expected a whole model with its weights")
    if "config.json" not in names:
        raise CheckpointError(f"'{repo.name}' holds no config.json; expected a Transformers model")
    hub_pull.require_safetensors(repo.name, names)
    for name, size in names.items():
        if "/" not in name and matches(name, hub_pull.COMPANIONS) and size > _MOST_COMPANION:
            raise CheckpointError(f"'{shown(name)}' of '{repo.name}' is {size / 1e6:.0f} MB; no model needs that")
    if (beside := sum(companions(repo).values())) > _MOST_BESIDE:
        raise CheckpointError(f"'{repo.name}' holds {beside / 1e6:.0f} MB beside its weights; no model needs that")


def companions(repo: Repo) -> dict[str, int]:
    """Path → bytes of all that may be downloaded beside the weights."""
    return {name: size for name, size in repo.files.items() if hub_pull.is_companion(name)}


def weight_names(repo: Repo, visitor: Visitor) -> list[str]:
    """The files that hold a model's weights.

    Args:
        repo: as this visitor found it just now.
        visitor: who asks.

    Raises:
        ConfigError: the index is too large.
        CheckpointError: it is none, or names files that are not there, or too many.
        HubError: it cannot be downloaded.
    """
    if SINGLE in repo.files:
        return [SINGLE]
    folder = small_files(repo, [INDEX], visitor, _MOST_INDEX)
    names = hub_pull.shards(repo.name, folder / INDEX, repo.files)
    if len(names) > _MOST_SHARDS:
        raise CheckpointError(
            f"the weights of '{repo.name}' lie in {len(names)} files; expected {_MOST_SHARDS} at most"
        )
    return names


def _headers(repo: Repo, visitor: Visitor) -> dict[str, Any]:
    """Name → dtype and shape of every tensor."""
    tensors: dict[str, Any] = {}
    for file in weight_names(repo, visitor):
        found = _header(repo, file, visitor)
        tensors |= found
        sane = all(_is_sane(tensor) for tensor in found.values()) and len(tensors) <= _MOST_TENSORS
        end = max((tensor.data_offsets[1] for tensor in found.values()), default=0) if sane else 0
        if not sane or not end <= repo.files[file] <= end + _MOST_HEADER:
            raise CheckpointError(
                f"the header of '{shown(file)}' of '{repo.name}' speaks of other weights than it has"
            )
    return tensors


def _header(repo: Repo, file: str, visitor: Visitor) -> dict[str, Any]:
    api = hub(visitor)
    try:
        with asking(f"open '{repo.name}'", repo.name, visitor, repo.commit):
            found = api.parse_safetensors_file_metadata(
                repo.name, file, revision=repo.commit, token=visitor.token, timeout=60
            )
    except PruneError:
        raise
    except Exception as error:  # whatever a stranger's header makes the parser raise
        raise CheckpointError(
            f"'{shown(file)}' of '{repo.name}' is no safetensors file ({type(error).__name__}); ask its owner to push "
            "it anew"
        ) from None
    return found.tensors


def _is_sane(tensor: Any) -> bool:
    numbers = [*tensor.shape, *tensor.data_offsets]
    return len(tensor.data_offsets) == 2 and all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)


def _is_weight(tensor: Any) -> bool:
    return len(tensor.shape) > 1 and tensor.dtype not in ("BOOL", "U8", "I64")


def _most_common(tensors: dict[str, Any]) -> Any:
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.parameter_count
    return _DTYPES.get(max(counts, key=lambda name: counts[name]))


def _parameters(tensors: dict[str, Any], tied: bool) -> dict[str, int]:
    """Parameters of each tensor; a head that is tied to the embeddings is left out, even where it is stored."""
    counts = {
        name: tensor.parameter_count
        for name, tensor in tensors.items()
        if tensor.dtype in _DTYPES and not (_COMPUTED.search(name) and len(tensor.shape) != 1)
    }
    if tied and any(name.endswith(_EMBEDDINGS) for name in counts):
        return {name: count for name, count in counts.items() if not name.endswith("lm_head.weight")}
    return counts
