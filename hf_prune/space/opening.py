"""From a repo on the Hub to a model in memory: downloaded, held against what it should be, loaded, healed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import hub_pull, loading, serial
from hf_prune.checkpoint import check_checkpoint
from hf_prune.errors import CheckpointError, ConfigError, PruneError
from hf_prune.healing.adapter import CONFIG, WEIGHTS
from hf_prune.healing.merge import merge_adapter
from hf_prune.healing.ranks import Ranks
from hf_prune.origins import origin_of
from hf_prune.output import ADAPTER, Finished
from hf_prune.records import ModelRef
from hf_prune.space import disk, settings
from hf_prune.space.asking import look
from hf_prune.space.ids import shown, without_paths
from hf_prune.space.pair import Half, Visitor
from hf_prune.space.weighing import companions, read_config, weight_names
from hf_prune.verify_healing import check_healing

_BUFFERS = 64 * 10**6
"""Bytes that a model may compute beside its weights, such as tables of positions."""


_MOST_GROWTH, _MOST_TOKEN = 1000, 4096
"""Characters that a tokenizer may make of one, and those of a token."""


def load_half(
    half: Half, adapter: Finished | None, visitor: Visitor, progress: Callable[[str], None]
) -> tuple[PreTrainedModel, Tokenizer]:
    """Download one model of a pair and load it, with its adapter merged where it has one.

    Args:
        half: which, as `pairs.find` found it.
        adapter: records of the model where its healing lies beside its weights as an adapter; None where none does.
        visitor: who asks, and may read it.
        progress: is told in words what is done.

    Raises:
        ConfigError: disk or memory has no room for it.
        CheckpointError: it is broken, or larger than its headers said.
        HubError: it cannot be downloaded.
    """
    assert half.commit is not None
    repo = look(half.name, visitor, half.commit)
    beside = () if adapter is None else (f"{ADAPTER}/{CONFIG}", f"{ADAPTER}/{WEIGHTS}")
    weights = {name: repo.files.get(name, 0) for name in (*weight_names(repo, visitor), *beside)}
    wanted = companions(repo) | weights
    with disk.room(half.name, half.commit, wanted):
        if size := disk.missing(half.name, half.commit, weights):
            progress(f"Downloading {half.name} ({size / 1e9:.2f} GB) …")
        folder = hub_pull.pull(half.name, half.commit, visitor.token, allow_patterns=beside)
        progress(f"Loading {half.name} …")
        return _guarded(lambda: _load(half, folder, adapter), half.name)


def _guarded(load: Callable[[], Any], name: str) -> Any:
    """Do it, with one kind of error, in which no path of this machine stands."""
    try:
        return load()
    except PruneError as error:
        raise type(error)(shown(without_paths(str(error), name), 500)) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise ConfigError(f"there is no memory left for '{name}'; try again later, or pick a smaller model") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a stranger's files raise anything; Rust's panics are no Exception
        said = shown(without_paths(str(error), name), 200)
        raise CheckpointError(f"'{name}' cannot be loaded: {type(error).__name__}: {said}") from None


def _load(half: Half, folder: Path, adapter: Finished | None) -> tuple[PreTrainedModel, Tokenizer]:
    config = read_config(folder, half.name)
    text = config.get_text_config(decoder=True)
    check_checkpoint(folder, text, half.name)
    dtype = getattr(torch, half.dtype)
    with loading.LOADING, torch.device("meta"):  # nothing is allocated, whatever sizes the config names
        _check_size(AutoModelForCausalLM.from_config(config, trust_remote_code=False), half, dtype)
    source = loading.Source(ModelRef(half.name, half.commit, text.model_type, half.layers), folder, True)
    _check_growth(folder / "tokenizer.json", half.name)
    tokenizer = loading.load_tokenizer(source, trust_remote_code=False)
    if (longest := max(map(len, tokenizer.get_vocab()), default=0)) > _MOST_TOKEN:
        raise CheckpointError(
            f"the tokenizer of '{half.name}' has a token of {longest:,} characters; no model has that"
        )
    model = loading.load_model(source, dtype=dtype, trust_remote_code=False)
    if adapter is not None:
        _heal(model, folder / ADAPTER, adapter, half.name)
    model.requires_grad_(False)
    moved: Any = model
    return moved.to(settings.device()), tokenizer


def _check_size(meta: nn.Module, half: Half, dtype: torch.dtype) -> None:
    weights = sum(p.numel() * dtype.itemsize for p in meta.parameters())
    beside = sum(b.numel() * b.element_size() for b in meta.buffers())
    if weights > half.bytes * 1.01 + 1e5 or beside > _BUFFERS + half.bytes // 4:
        raise CheckpointError(
            f"'{half.name}' takes {(weights + beside) / 1e9:.2f} GB by its config and {half.bytes / 1e9:.2f} GB by "
            "its weights; ask its owner to repair it"
        )


def _check_growth(path: Path, name: str) -> None:
    """Refuse a tokenizer that makes very much of little text: replacements in replacements fill any memory."""
    try:
        raw = serial.read_json(path) if path.is_file() else {}
    except PruneError:
        return  # that it is none, its loader says
    parts = ("normalizer", "pre_tokenizer", "decoder")
    if isinstance(raw, dict) and max(_growth(raw.get(part)) for part in parts) > _MOST_GROWTH:
        raise CheckpointError(f"the tokenizer of '{name}' makes more than {_MOST_GROWTH} characters of one")


def _growth(value: Any) -> int:
    """How many characters one may become, by all replacements in a part of a tokenizer."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    grown = math.prod(map(_growth, inner))
    if isinstance(value, dict) and isinstance(content := value.get("content"), str):
        grown *= max(1, len(content))
    return min(grown, _MOST_GROWTH + 1)


def _heal(model: PreTrainedModel, folder: Path, records: Finished, name: str) -> None:
    """Merge an adapter into the weights, so that writing is not slowed by it; peft is not asked."""
    healing = records.healing
    assert healing is not None
    check = check_healing(folder.parent, model, healing, origin_of(records.plan))
    if check.status != "pass" or not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"the adapter of '{name}' is not the one of its records: {check.reason or 'none there'}")
    merge_adapter(model, load_file(folder / WEIGHTS), Ranks.recorded(healing.settings).scaling)
