"""`Decoder`: the one view of a causal language model that all other code uses."""

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune.architecture.families import check_decoder, layer_count
from hf_prune.errors import ArchitectureError

ModelT = TypeVar("ModelT", bound=nn.Module)

_INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx")


@dataclass(frozen=True)
class Decoder:
    """A causal language model seen as a row of residual blocks.

    Attributes:
        model: the causal LM (with head).
        config: its text config, the live object that the model reads.
        blocks: the decoder blocks, in order.
        blocks_path: their dotted path in `model`, such as "model.layers".
        name: what the model is called in errors.
    """

    model: PreTrainedModel
    config: PretrainedConfig
    blocks: nn.ModuleList
    blocks_path: str
    name: str

    @property
    def num_layers(self) -> int:
        """Blocks there are."""
        return len(self.blocks)

    @property
    def base(self) -> nn.Module:
        """The model without its language modelling head."""
        return self.model.base_model

    def block_prefix(self, layer: int) -> str:
        """Prefix of the parameter names of one block, such as "model.layers.3."."""
        return f"{self.blocks_path}.{layer}."

    def set_blocks(self, blocks: nn.ModuleList) -> "Decoder":
        """Put another ModuleList in the model and return the new view."""
        parent_path, _, leaf = self.blocks_path.rpartition(".")
        setattr(self.model.get_submodule(parent_path), leaf, blocks)
        return Decoder(self.model, self.config, blocks, self.blocks_path, self.name)


def renumber(block: nn.Module, position: int) -> None:
    """Tell every part of a block its new position: caches and masks look it up."""
    for module in block.modules():
        for name in _INDEX_ATTRIBUTES:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, position)


def decoder_of(model: Any, name: str | None = None) -> Decoder:
    """Find the decoder blocks of a causal language model.

    Args:
        model: a `PreTrainedModel` with a language modelling head.
        name: what it is called in errors; its own name when None.

    Raises:
        ArchitectureError: no causal LM, an unsupported layout, or a layer count that disagrees with the config.
    """
    if type(model).__module__.startswith("peft."):
        raise ArchitectureError(
            f"the model is a {type(model).__name__} with adapters; expected a plain model: call merge_and_unload() or "
            "unload() first"
        )
    if not isinstance(model, PreTrainedModel):
        raise ArchitectureError(f"expected a transformers PreTrainedModel; got {type(model).__name__}")
    name = name or model.config._name_or_path or type(model).__name__
    check_decoder(model.config, name)
    if model.get_output_embeddings() is None:
        raise ArchitectureError(
            f"'{name}' is a {type(model).__name__} without a language modelling head; load it with "
            "AutoModelForCausalLM"
        )
    config = model.config.get_text_config(decoder=True)
    path, blocks = _find_blocks(model, layer_count(config), name)
    return Decoder(model, config, blocks, path, name)


def _find_blocks(model: PreTrainedModel, depth: int, name: str) -> tuple[str, nn.ModuleList]:
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise ArchitectureError(f"'{name}' ({type(model).__name__}) keeps no ModuleList of blocks; it cannot be cut")
    level = min(path.count(".") for path, _ in lists)
    outermost = [(path, m) for path, m in lists if path.count(".") == level]
    fitting = [(path, m) for path, m in outermost if len(m) == depth]
    if len(fitting) > 1:
        raise ArchitectureError(
            f"'{name}' ({type(model).__name__}) has several lists of {depth} modules "
            f"({', '.join(path for path, _ in fitting)}); which of them is the decoder is not known"
        )
    if not fitting:
        raise ArchitectureError(
            f"'{name}': the config promises num_hidden_layers={depth} blocks but the model holds "
            f"{', '.join(f'{len(m)} at {path!r}' for path, m in outermost)}; repair the config or the weights"
        )
    return fitting[0]


def structural_copy(model: ModelT) -> ModelT:
    """A second model made of the same tensors: cutting one leaves the other whole, and no weight is copied."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, tied ones counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def block_sizes(decoder: Decoder) -> tuple[list[int], list[int]]:
    """Parameters and bytes of each block."""
    parameters = [sum(p.numel() for p in b.parameters()) for b in decoder.blocks]
    return parameters, [parameter_bytes(b) for b in decoder.blocks]


def keep_quantized_bits(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for the processor, which rounds their scales for good.

    Some processors multiply repacked weights faster; saved afterwards they would no longer be the weights of the base.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def first_device(model: nn.Module) -> torch.device:
    """Device of the embeddings, where inputs go; for offloaded ones the device that computes them."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    source = embeddings if embeddings is not None else model
    device = next(source.parameters()).device
    # accelerate's hook: the weights lie elsewhere while they are not used.
    execution = getattr(getattr(source, "_hf_hook", None), "execution_device", None)
    return torch.device(execution) if device.type == "meta" and execution is not None else device
