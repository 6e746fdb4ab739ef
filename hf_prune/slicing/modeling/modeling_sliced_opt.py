"""A sliced OPT: its own decoder layer with narrower maps and shortcuts; LayerNorm has become RMSNorm."""

from typing import Any

from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTForCausalLM

from .configuration_sliced_opt import SlicedOPTConfig
from .sliced import TUPLES_IN_4, Branch, SlicedBlock, SlicedCausalLM, Step

_ATTENTION = Branch(
    norm="self_attn_layer_norm",
    body=("self_attn",),
    readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    writers=("self_attn.out_proj",),
    dropout="dropout",
    attends=True,
)
_MLP = Branch(
    norm="final_layer_norm",
    body=("fc1", "activation_fn", "fc2"),
    readers=("fc1",),
    writers=("fc2",),
    dropout="dropout",
)


class SlicedOPTDecoderLayer(SlicedBlock, OPTDecoderLayer):
    """Attention, then an MLP."""

    returns_tuple = TUPLES_IN_4

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return Step("attn_shortcut", "attn_out", (_ATTENTION,)), Step("mlp_shortcut", "mlp_out", (_MLP,))


class SlicedOPTForCausalLM(SlicedCausalLM, OPTForCausalLM):
    """An OPT with a narrower residual stream."""

    config_class = SlicedOPTConfig
    block_class = SlicedOPTDecoderLayer
    blocks = "model.decoder.layers"
    final_norm = "model.decoder.final_layer_norm"
    tables = ("model.decoder.embed_tokens", "model.decoder.embed_positions")
    _no_split_modules = ["SlicedOPTDecoderLayer"]
