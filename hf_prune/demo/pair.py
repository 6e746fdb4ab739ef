"""The embedded model and its pruned, healed second half, which is shipped as a small adapter: see `heal`."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import loading
from hf_prune.architecture import decoder_of
from hf_prune.checkpoint import read_header, weight_files
from hf_prune.demo import NAME, model_folder
from hf_prune.healing.adapter import WEIGHTS, scaling
from hf_prune.healing.merge import merge_adapter
from hf_prune.loading import Source
from hf_prune.output import ADAPTER, Finished
from hf_prune.surgery import apply_plan

HEALED = f"{NAME}-healed"
"""Folder of the second half, and what it is called."""

DTYPE = torch.float32
"""What both are computed in: they are small, processors may be slow in bfloat16, and merging rounds nothing."""


@dataclass(frozen=True)
class Size:
    """How large one of the two is.

    Attributes:
        name: what it is called.
        layers: blocks.
        parameters: tied ones once.
        bytes: of the weights once loaded.
    """

    name: str
    layers: int
    parameters: int
    bytes: int


def healed_folder() -> Path:
    """The folder of the second half, the same from a checkout and from an installed wheel."""
    return Path(str(files("hf_prune.demo").joinpath(HEALED)))


@functools.cache
def records() -> Finished:
    """How the second half was made, and what was measured of both."""
    return Finished.load(healed_folder())


@functools.cache
def sizes() -> tuple[Size, Size]:
    """Of the original and of the second half, by the headers of the embedded weights; nothing is loaded."""
    plan = records().plan
    header = {name: tensor for path in weight_files(model_folder()) for name, tensor in read_header(path).items()}
    gone = tuple(f"model.layers.{layer}." for layer in plan.dropped)
    whole = sum(_count(tensor.shape) for tensor in header.values())
    lost = sum(_count(tensor.shape) for name, tensor in header.items() if name.startswith(gone))
    return (
        Size(NAME, plan.model.num_layers, whole, whole * DTYPE.itemsize),
        Size(HEALED, len(plan.kept), whole - lost, (whole - lost) * DTYPE.itemsize),
    )


def load() -> tuple[PreTrainedModel, PreTrainedModel, Tokenizer]:
    """The original, the second half with its adapter merged, and the tokenizer of both.

    Raises:
        CheckpointError: the adapter does not fit the model: files of two versions got mixed.
    """
    finished = records()
    source = Source(finished.plan.model, model_folder(), False)
    original, pruned = (loading.load_model(source, dtype=DTYPE) for _ in range(2))
    apply_plan(decoder_of(pruned, NAME), finished.plan)
    merge_adapter(pruned, load_file(healed_folder() / ADAPTER / WEIGHTS), scaling(finished.config.healing))
    return original, pruned, loading.load_tokenizer(source)


def _count(shape: Iterable[int]) -> int:
    return int(torch.Size(shape).numel())
