"""A sliced Qwen3: its own decoder layer with narrower maps and shortcuts."""

from typing import Any

from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM

from .configuration_sliced_qwen3 import SlicedQwen3Config
from .sliced import GATED_STEPS, SlicedBlock, SlicedCausalLM, Step


class SlicedQwen3DecoderLayer(SlicedBlock, Qwen3DecoderLayer):
    """Attention, then a gated MLP."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        return GATED_STEPS


class SlicedQwen3ForCausalLM(SlicedCausalLM, Qwen3ForCausalLM):
    """A Qwen3 with a narrower residual stream."""

    config_class = SlicedQwen3Config
    block_class = SlicedQwen3DecoderLayer
    _no_split_modules = ["SlicedQwen3DecoderLayer"]
