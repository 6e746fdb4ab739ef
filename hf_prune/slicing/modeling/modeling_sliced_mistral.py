"""A sliced Mistral: its own decoder layer with narrower maps and shortcuts."""

from typing import Any

from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM

from .configuration_sliced_mistral import SlicedMistralConfig
from .sliced import GATED_STEPS, SlicedBlock, SlicedCausalLM, Step


class SlicedMistralDecoderLayer(SlicedBlock, MistralDecoderLayer):
    """Attention, then a gated MLP."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return GATED_STEPS


class SlicedMistralForCausalLM(SlicedCausalLM, MistralForCausalLM):
    """A Mistral with a narrower residual stream."""

    config_class = SlicedMistralConfig
    block_class = SlicedMistralDecoderLayer
    _no_split_modules = ["SlicedMistralDecoderLayer"]
