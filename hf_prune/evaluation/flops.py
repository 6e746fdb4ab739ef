"""How many floating-point operations a model does for a token, counted by torch while it reads a prompt."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

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
