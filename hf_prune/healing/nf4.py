"""NF4 for training: which maps are quantized, and which are kept as they are."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import decoder_of
from hf_prune.healing import checkpoint
from hf_prune.healing.targets import is_shortcut

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def nf4_config(folder: Path, compute: torch.dtype, *, trust_remote_code: bool = False) -> "BitsAndBytesConfig":
    """How a pruned checkpoint is quantized while it is trained on.

    Args:
        folder: complete stock checkpoint.
        compute: dtype of the products.
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
        llm_int8_skip_modules=kept_whole(folder, trust_remote_code=trust_remote_code),
    )


def kept_whole(folder: Path, *, trust_remote_code: bool = False) -> list[str] | None:
    """The modules of a pruned checkpoint that are not quantized; None leaves the choice to transformers.

    A model without shortcuts takes transformers' choice, which keeps the head. In a sliced model the whole residual
    stream passes through every shortcut, and rounding errors there would add up over the layers. As a list replaces
    transformers' choice, it also names every linear map outside of the blocks: the head, tied or not, and the map
    before it.

    Args:
        folder: complete stock checkpoint.
        trust_remote_code: whether to run code from the folder.

    Returns:
        Full names outside of the blocks, last parts of names (`attn_shortcut`) within them: transformers matches both.

    Raises:
        CheckpointError: there are no safetensors files, or one cannot be read.
    """
    if not any(is_shortcut(name.removesuffix(".weight")) for name in checkpoint.tensor_names(folder)):
        return None
    # The modules, not the tensors: a tied head is no tensor of the checkpoint.
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    inside = decoder_of(model, folder.name).blocks_path + "."
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    outside = {name for name in linears if not name.startswith(inside)}
    shortcuts = {name.rpartition(".")[2] for name in linears if name.startswith(inside) and is_shortcut(name)}
    return sorted(outside | shortcuts)
