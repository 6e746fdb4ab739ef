"""A sliced Qwen2: its own decoder layer with narrower maps and shortcuts."""

from typing import Any

from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM

from .configuration_sliced_qwen2 import SlicedQwen2Config
from .sliced import GATED_STEPS, SlicedBlock, SlicedCausalLM, Step


class SlicedQwen2DecoderLayer(SlicedBlock, Qwen2DecoderLayer):
    """Attention, then a gated MLP."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return GATED_STEPS


class SlicedQwen2ForCausalLM(SlicedCausalLM, Qwen2ForCausalLM):
    """A Qwen2 with a narrower residual stream."""

    config_class = SlicedQwen2Config
    block_class = SlicedQwen2DecoderLayer
    _no_split_modules = ["SlicedQwen2DecoderLayer"]
