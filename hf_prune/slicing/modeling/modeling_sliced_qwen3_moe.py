"""A sliced Qwen3Moe: its own decoder layer with narrower maps, router and experts, and shortcuts."""

from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer, Qwen3MoeForCausalLM

from .configuration_sliced_qwen3_moe import SlicedQwen3MoeConfig
from .sliced import SlicedCausalLM
from .sliced_moe import SlicedExpertsBlock


class SlicedQwen3MoeDecoderLayer(SlicedExpertsBlock, Qwen3MoeDecoderLayer):
    """Attention, then experts (or a gated MLP)."""


class SlicedQwen3MoeForCausalLM(SlicedCausalLM, Qwen3MoeForCausalLM):
    """A Qwen3Moe with a narrower residual stream."""

    config_class = SlicedQwen3MoeConfig
    block_class = SlicedQwen3MoeDecoderLayer
    _no_split_modules = ["SlicedQwen3MoeDecoderLayer"]
