"""NF4 for training: which maps are quantized, and which are kept as they are."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.healing import checkpoint
from hf_prune.healing.targets import is_shortcut

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def nf4_config(
    folder: Path, compute: torch.dtype, *, whole: Collection[str] = (), trust_remote_code: bool = False
) -> "BitsAndBytesConfig":
    """How a pruned checkpoint is quantized while it is trained on.

    Args:
        folder: complete stock checkpoint.
        compute: dtype of the products.
        whole: full names of modules that are trained themselves.
        trust_remote_code: whether to run code from the folder.

    Raises:
        CheckpointError: there are no safetensors files, or one cannot be read.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=kept_whole(folder, whole=whole, trust_remote_code=trust_remote_code),
    )


def kept_whole(folder: Path, *, whole: Collection[str] = (), trust_remote_code: bool = False) -> list[str] | None:
    """The modules of a pruned checkpoint that are not quantized; None leaves the choice to transformers.

    A model without shortcuts takes transformers' choice, which keeps the head, and what is trained itself. In a sliced
    model the whole residual stream passes through every shortcut, and rounding errors there would add up over the
    layers. As a list replaces transformers' choice, it also names every linear map outside of the blocks: the head,
    tied or not, and the map before it.

    Args:
        folder: complete stock checkpoint.
        whole: full names of modules that are trained themselves.
        trust_remote_code: whether to run code from the folder.

    Returns:
        Full names outside of the blocks and of what is trained, last parts of names (`attn_shortcut`) within the
        blocks: transformers matches both.

    Raises:
        CheckpointError: there are no safetensors files, or one cannot be read.
    """
    sliced = any(is_shortcut(name.removesuffix(".weight")) for name in checkpoint.tensor_names(folder))
    if not sliced and not whole:
        return None
    # The modules, not the tensors: a tied head is no tensor of the checkpoint.
    model = checkpoint.blank(folder, trust_remote_code=trust_remote_code)
    if not sliced:
        return sorted({*_stock_choice(model), *whole})
    inside = decoder_of(model, folder.name).blocks_path + "."
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    outside = {name for name in linears if not name.startswith(inside)}
    shortcuts = {name.rpartition(".")[2] for name in linears if name.startswith(inside) and is_shortcut(name)}
    return sorted({*outside, *shortcuts, *whole})


def leaves_some(decoder: Decoder, whole: Collection[str]) -> bool:
    """Whether any linear map of the blocks can be quantized.

    Args:
        decoder: the pruned model.
        whole: full names of modules that are trained themselves.
    """
    return any(
        isinstance(module, nn.Linear | Conv1D)
        and not is_shortcut(name)
        and decoder.block_prefix(at) + name not in whole
        for at, block in enumerate(decoder.blocks)
        for name, module in block.named_modules()
    )


def _stock_choice(model: PreTrainedModel) -> list[str]:
    from transformers.quantizers.base import get_keys_to_not_convert

    return get_keys_to_not_convert(model)
