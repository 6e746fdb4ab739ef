"""How many floating-point operations a model does for a token, counted by torch while it reads a prompt."""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune.errors import ArchitectureError
from hf_prune.runner import evaluating

_Shape = Sequence[int]


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """2·b·h·s_q·s_k·(d + d_v): scores and weighted values; masked positions count, as in torch's other kernels."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _experts(rows: _Shape, weights: _Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Each row meets the weights of its own expert alone."""
    return 2 * math.prod(rows) * weights[-1]


# Kernels that torch's own counter passes over, or (those of GPUs, up to torch 2.11 at least) refuses where several
# heads of queries share one of keys and values.
_MORE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention: _attention,
    torch.ops.aten._scaled_dot_product_efficient_attention: _attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention: _attention,
    torch.ops.aten._grouped_mm: _experts,
}


@torch.inference_mode()
def flops_per_token(model: PreTrainedModel, prompt_tokens: int) -> float | None:
    """FLOPs of one forward pass over one prompt, with logits at every position, divided by its tokens.

    A multiplication and an addition count as two. Matrix products, convolutions and attention are counted; norms,
    activations, softmax, rotary embeddings and the scans of state-space models are not.

    Args:
        model: the causal LM; put in eval mode, and back.
        prompt_tokens: of the prompt.

    Returns:
        The figure; None where the weights are quantized, whose kernels torch can't count.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return None
    table = next(model.get_input_embeddings().parameters())
    ids = torch.arange(prompt_tokens, device=table.device)[None] % len(table)
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    with evaluating(model), counter:
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops() / prompt_tokens


@torch.inference_mode()
def module_flops(model: PreTrainedModel, prompt_tokens: int) -> dict[str, int]:
    """FLOPs of each module of a model for one prompt, counted as `flops_per_token` does, without any number computed.

    The model is made again from its config, of tensors that have shapes alone: neither its weights nor its device
    matter, and weights that are quantized count as what they stand for.

    Args:
        model: the causal LM; it stays as it is.
        prompt_tokens: of the prompt.

    Returns:
        By the dotted path of the module, those of its children included; the whole model's under "". Modules that do
        nothing that counts are left out.

    Raises:
        ArchitectureError: what the model does depends on the numbers.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return dict(_counted(_Blank(type(model), repr(vars(config) | {"_name_or_path": ""}), config), prompt_tokens))


@dataclass(frozen=True)
class _Blank:
    """A model that can be made: the same one where class and settings are the same."""

    kind: type[PreTrainedModel]
    settings: str
    config: PretrainedConfig = field(compare=False)


# Models of one shape are asked about again and again: by each healing, and by each row of a comparison.
@functools.lru_cache(maxsize=32)
def _counted(asked: _Blank, prompt_tokens: int) -> dict[str, int]:
    # Kernels of GPUs alone do not take tensors without numbers.
    kernel = "sdpa" if getattr(asked.kind, "_supports_sdpa", False) else "eager"
    with torch.device("meta"):
        blank: Any = asked.kind._from_config(asked.config, attn_implementation=kernel, dtype=torch.float32)
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    # Grouped products of experts know their shapes in this dtype alone.
    with evaluating(blank.to(torch.bfloat16)), FakeTensorMode(allow_non_fake_inputs=True):
        blank.to_empty(device="cpu")
        ids = torch.zeros(1, prompt_tokens, dtype=torch.int64)
        try:
            with counter:
                blank(input_ids=ids, use_cache=False)
        except RuntimeError as error:
            raise ArchitectureError(
                f"the FLOPs of a {asked.kind.__name__} cannot be counted without running it "
                f"({str(error).splitlines()[0][:120]}); take a share of the parameters (sparsity_of='parameters')"
            ) from error
    root = type(blank).__name__
    found = {path: sum(kinds.values()) for path, kinds in counter.get_flop_counts().items()}
    return {path.removeprefix(root).removeprefix("."): count for path, count in found.items() if path != "Global"}
