"""A sliced GPT-2: its own block with narrower maps and shortcuts; LayerNorm has become RMSNorm."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.gpt2.modeling_gpt2 import GPT2Block, GPT2LMHeadModel, GPT2Model
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_sliced_gpt2 import SlicedGPT2Config
from .sliced import Branch, SlicedBlock, SlicedCausalLM, Step, first

_ATTENTION = Branch(norm="ln_1", body=("attn",), readers=("attn.c_attn",), writers=("attn.c_proj",), attends=True)
_MLP = Branch(norm="ln_2", body=("mlp",), readers=("mlp.c_fc",), writers=("mlp.c_proj",))


class SlicedGPT2Block(SlicedBlock, GPT2Block):  # type: ignore[misc]
    """Attention, then an MLP."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return Step("attn_shortcut", "attn_out", (_ATTENTION,)), Step("mlp_shortcut", "mlp_out", (_MLP,))

    def attend(self, attention: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """GPT-2 hands cache and mask over by position, and what cross-attention would read."""
        kwargs |= dict(zip(("past_key_values", "attention_mask", "encoder_hidden_states"), args, strict=False))
        for name in ("encoder_hidden_states", "encoder_attention_mask"):
            kwargs.pop(name, None)
        return first(attention(hidden_states, **kwargs))


class SlicedGPT2Model(GPT2Model):
    """GPT-2's own forward answers in the width of its embeddings; this one in the width behind the last block."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """As GPT-2's, without cross-attention."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds")
        embeds: Any = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + embeds.shape[1], device=embeds.device).unsqueeze(0)
        hidden_states = embeds + self.wpe(position_ids)
        if token_type_ids is not None:
            hidden_states = hidden_states + self.wte(token_type_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for name in ("output_attentions", "output_hidden_states", "encoder_hidden_states", "encoder_attention_mask"):
            kwargs.pop(name, None)
        hidden_states = self.drop(hidden_states)
        for block in self.h:
            hidden_states = block(
                hidden_states,
                past_key_values,
                mask,
                use_cache=use_cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class _GPT2LMHeadModel(GPT2LMHeadModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = SlicedGPT2Model(config)


class SlicedGPT2ForCausalLM(SlicedCausalLM, _GPT2LMHeadModel):
    """A GPT-2 with a narrower residual stream."""

    config_class = SlicedGPT2Config
    block_class = SlicedGPT2Block
    blocks = "transformer.h"
    final_norm = "transformer.ln_f"
    tables = ("transformer.wte", "transformer.wpe")
    _no_split_modules = ["SlicedGPT2Block"]
