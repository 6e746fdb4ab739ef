"""A sliced Llama: its own decoder layer with narrower maps and shortcuts."""

from typing import Any

from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from .configuration_sliced_llama import SlicedLlamaConfig
from .sliced import GATED_STEPS, SlicedBlock, SlicedCausalLM, Step


class SlicedLlamaDecoderLayer(SlicedBlock, LlamaDecoderLayer):
    """Attention, then a gated MLP."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return GATED_STEPS


class SlicedLlamaForCausalLM(SlicedCausalLM, LlamaForCausalLM):
    """A Llama with a narrower residual stream."""

    config_class = SlicedLlamaConfig
    block_class = SlicedLlamaDecoderLayer
    _no_split_modules = ["SlicedLlamaDecoderLayer"]
