"""A sliced model of one basis as a plain model of its family, which any engine loads."""

import copy
import math
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import base_type, decoder_of
from hf_prune.errors import ArchitectureError
from hf_prune.slicing.blank import check_filled, put_buffer, put_parameter
from hf_prune.slicing.modeling import PLAIN
from hf_prune.slicing.modeling.sliced import SlicedRMSNorm, part

_SLICED_ONLY = ("slice_dims", "slice_shortcuts", "auto_map", "architectures", "model_type", "transformers_version")


def export_plain(model: PreTrainedModel) -> PreTrainedModel:
    """Write a sliced model of one basis and one width as an ordinary checkpoint of its family.

    Without shortcuts a stream of d directions is that of a model with `hidden_size` d, but for the norms, which divide
    by the base's width D: RMSNorm over d with weight sqrt(D/d) and epsilon eps D/d is the same function.

    Args:
        model: from slicing with basis="global" and an untied head; its tensors are shared with the result.

    Raises:
        ArchitectureError: the model is not sliced, has shortcuts, several widths or a tied head, or its family has no
            such plain form; names what.
    """
    decoder = decoder_of(model)
    config: Any = decoder.config
    family, width = base_type(config.model_type), _one_width(config, decoder.name)
    fields = {key: value for key, value in config.to_dict().items() if key not in _SLICED_ONLY}
    wide = config.hidden_size
    fields |= {
        "hidden_size": width,
        "head_dim": getattr(config, "head_dim", None) or wide // config.num_attention_heads,
        "rms_norm_eps": config.rms_norm_eps * wide / width,
        "tie_word_embeddings": False,
    }
    plain_config = AutoConfig.for_model(family, **fields)
    plain_config._attn_implementation = config._attn_implementation
    with torch.device("meta"):
        plain: Any = AutoModelForCausalLM.from_config(plain_config)
    for name, parameter in plain.named_parameters():
        norm = part(model, name.rpartition(".")[0])
        found = part(model, name)
        if isinstance(norm, SlicedRMSNorm):
            found = torch.full((width,), math.sqrt(wide / width), dtype=model.dtype, device=model.device)
        assert isinstance(found, torch.Tensor) and found.shape == parameter.shape, name
        put_parameter(plain, name, found.detach())
    for name, buffer in model.named_buffers():
        put_buffer(plain, name, buffer)
    check_filled(plain)
    plain.config.dtype = model.dtype
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval()


def _one_width(config: Any, name: str) -> int:
    family = base_type(config.model_type)
    dims = getattr(config, "slice_dims", None)
    if dims is None or family not in PLAIN:
        raise ArchitectureError(
            f"'{name}' (model_type '{config.model_type}') cannot be exported as a plain model; expected a sliced "
            f"model of one of: {', '.join(PLAIN)}"
        )
    if config.slice_shortcuts:
        raise ArchitectureError(
            f"'{name}' has shortcuts between its layers (config key 'slice_shortcuts'), for which plain models "
            "have no place; slice with basis='global'"
        )
    if config.tie_word_embeddings:
        raise ArchitectureError(
            f"'{name}' keeps one table for head and embeddings with a map between them (config key "
            "'tie_word_embeddings'), for which plain models have no place; slice with tied=False"
        )
    widths = {dims["embed"], *dims["attn_out"], *dims["mlp_out"]}
    width = widths.pop()
    if widths or width % config.num_attention_heads:
        raise ArchitectureError(
            f"'{name}' has the widths {sorted({width, *widths})} (config key 'slice_dims'); a plain model takes one, "
            f"a multiple of its {config.num_attention_heads} heads"
        )
    return width
