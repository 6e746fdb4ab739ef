"""A sliced Phi: its own decoder layer with narrower maps and one shortcut; LayerNorm has become RMSNorm."""

from typing import Any

from transformers.models.phi.modeling_phi import PhiDecoderLayer, PhiForCausalLM

from .configuration_sliced_phi import SlicedPhiConfig
from .sliced import TUPLES_IN_4, Branch, SlicedBlock, SlicedCausalLM, Step

_ATTENTION = Branch(
    norm="input_layernorm",
    body=("self_attn",),
    readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    writers=("self_attn.dense",),
    dropout="resid_dropout",
    attends=True,
)
_MLP = Branch(
    norm="input_layernorm",
    body=("mlp",),
    readers=("mlp.fc1",),
    writers=("mlp.fc2",),
    dropout="resid_dropout",
)


class SlicedPhiDecoderLayer(SlicedBlock, PhiDecoderLayer):
    """Attention and MLP side by side, behind one norm."""

    returns_tuple = TUPLES_IN_4

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return (Step("shortcut", "mlp_out", (_ATTENTION, _MLP)),)


class SlicedPhiForCausalLM(SlicedCausalLM, PhiForCausalLM):
    """A Phi with a narrower residual stream."""

    config_class = SlicedPhiConfig
    block_class = SlicedPhiDecoderLayer
    final_norm = "model.final_layernorm"
    _no_split_modules = ["SlicedPhiDecoderLayer"]
