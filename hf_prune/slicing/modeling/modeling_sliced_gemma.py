"""A sliced Gemma: its own decoder layer with narrower maps and shortcuts."""

from typing import Any

from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaForCausalLM

from .configuration_sliced_gemma import SlicedGemmaConfig
from .sliced import GATED_STEPS, SlicedBlock, SlicedCausalLM, Step


class SlicedGemmaDecoderLayer(SlicedBlock, GemmaDecoderLayer):
    """Attention, then a gated MLP."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return GATED_STEPS


class SlicedGemmaForCausalLM(SlicedCausalLM, GemmaForCausalLM):
    """A Gemma with a narrower residual stream."""

    config_class = SlicedGemmaConfig
    block_class = SlicedGemmaDecoderLayer
    norm_offset = 1.0
    _no_split_modules = ["SlicedGemmaDecoderLayer"]
