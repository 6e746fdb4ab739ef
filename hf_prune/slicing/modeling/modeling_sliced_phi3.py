"""A sliced Phi-3: its own decoder layer with narrower maps and shortcuts; fused maps are one reader."""

from typing import Any

from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3ForCausalLM

from .configuration_sliced_phi3 import SlicedPhi3Config
from .sliced import Branch, SlicedBlock, SlicedCausalLM, Step

_ATTENTION = Branch(
    norm="input_layernorm",
    body=("self_attn",),
    readers=("self_attn.qkv_proj",),
    writers=("self_attn.o_proj",),
    dropout="resid_attn_dropout",
    attends=True,
)
_MLP = Branch(
    norm="post_attention_layernorm",
    body=("mlp",),
    readers=("mlp.gate_up_proj",),
    writers=("mlp.down_proj",),
    dropout="resid_mlp_dropout",
)


class SlicedPhi3DecoderLayer(SlicedBlock, Phi3DecoderLayer):
    """Attention, then a gated MLP, with fused maps."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return Step("attn_shortcut", "attn_out", (_ATTENTION,)), Step("mlp_shortcut", "mlp_out", (_MLP,))


class SlicedPhi3ForCausalLM(SlicedCausalLM, Phi3ForCausalLM):
    """A Phi-3 with a narrower residual stream."""

    config_class = SlicedPhi3Config
    block_class = SlicedPhi3DecoderLayer
    _no_split_modules = ["SlicedPhi3DecoderLayer"]
