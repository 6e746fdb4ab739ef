"""A sliced GPT-NeoX: its own layer with narrower maps and shortcuts; LayerNorm has become RMSNorm."""

from typing import Any

from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXLayer

from .configuration_sliced_gpt_neox import SlicedGPTNeoXConfig
from .sliced import TUPLES_IN_4, Branch, SlicedBlock, SlicedCausalLM, Step

_ATTENTION = Branch(
    norm="input_layernorm",
    body=("attention",),
    readers=("attention.query_key_value",),
    writers=("attention.dense",),
    dropout="post_attention_dropout",
    attends=True,
)
_MLP = Branch(
    norm="post_attention_layernorm",
    body=("mlp",),
    readers=("mlp.dense_h_to_4h",),
    writers=("mlp.dense_4h_to_h",),
    dropout="post_mlp_dropout",
)


class SlicedGPTNeoXLayer(SlicedBlock, GPTNeoXLayer):  # type: ignore[misc]
    """Attention and MLP side by side, behind a norm each, or one after the other."""

    returns_tuple = TUPLES_IN_4

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        if config.use_parallel_residual:
            return (Step("shortcut", "mlp_out", (_ATTENTION, _MLP)),)
        return Step("attn_shortcut", "attn_out", (_ATTENTION,)), Step("mlp_shortcut", "mlp_out", (_MLP,))


class SlicedGPTNeoXForCausalLM(SlicedCausalLM, GPTNeoXForCausalLM):
    """A GPT-NeoX with a narrower residual stream."""

    config_class = SlicedGPTNeoXConfig
    block_class = SlicedGPTNeoXLayer
    blocks = "gpt_neox.layers"
    final_norm = "gpt_neox.final_layer_norm"
    tables = ("gpt_neox.embed_in",)
    _no_split_modules = ["SlicedGPTNeoXLayer"]

    @staticmethod
    def _fix_state_dict_key_on_load(key: str) -> tuple[str, bool]:
        """Asked by transformers 4 alone, which calls the head by another name."""
        return key.replace("lm_head.", "embed_out."), key.startswith("lm_head.")

    @staticmethod
    def _fix_state_dict_key_on_save(key: str) -> tuple[str, bool]:
        """And back: files look the same, whoever wrote them."""
        return key.replace("embed_out.", "lm_head."), key.startswith("embed_out.")
