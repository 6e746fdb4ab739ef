"""A sliced Falcon: its own decoder layer with narrower maps and shortcuts; LayerNorm has become RMSNorm."""

from typing import Any

from transformers.models.falcon.modeling_falcon import FalconDecoderLayer, FalconForCausalLM

from .configuration_sliced_falcon import SlicedFalconConfig
from .sliced import Branch, SlicedBlock, SlicedCausalLM, Step


class SlicedFalconDecoderLayer(SlicedBlock, FalconDecoderLayer):
    """Attention and MLP side by side, behind one norm or one each, or one after the other (Falcon-RW)."""

    returns_tuple = True

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        parallel = config.new_decoder_architecture or config.parallel_attn
        two = config.num_ln_in_parallel_attn
        two = 2 if two is None and config.new_decoder_architecture else two
        if not parallel:
            norms = ("input_layernorm", "post_attention_layernorm")
        else:
            norms = ("ln_attn", "ln_mlp") if two == 2 else ("input_layernorm", "input_layernorm")
        attention = Branch(
            norm=norms[0],
            body=("self_attention",),
            readers=("self_attention.query_key_value",),
            writers=("self_attention.dense",),
            dropout="hidden_dropout" if parallel else None,
            attends=True,
        )
        mlp = Branch(
            norm=norms[1],
            body=("mlp",),
            readers=("mlp.dense_h_to_4h",),
            writers=("mlp.dense_4h_to_h",),
            dropout="hidden_dropout",
        )
        if parallel:
            return (Step("shortcut", "mlp_out", (attention, mlp)),)
        return Step("attn_shortcut", "attn_out", (attention,)), Step("mlp_shortcut", "mlp_out", (mlp,))


class SlicedFalconForCausalLM(SlicedCausalLM, FalconForCausalLM):
    """A Falcon with a narrower residual stream."""

    config_class = SlicedFalconConfig
    block_class = SlicedFalconDecoderLayer
    blocks = "transformer.h"
    final_norm = "transformer.ln_f"
    tables = ("transformer.word_embeddings",)
    _no_split_modules = ["SlicedFalconDecoderLayer"]
