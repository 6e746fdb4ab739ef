"""A sliced Qwen2Moe: its own decoder layer with narrower maps, router and experts, and shortcuts."""

from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeDecoderLayer, Qwen2MoeForCausalLM

from .configuration_sliced_qwen2_moe import SlicedQwen2MoeConfig
from .sliced import SlicedCausalLM
from .sliced_moe import SlicedExpertsBlock


class SlicedQwen2MoeDecoderLayer(SlicedExpertsBlock, Qwen2MoeDecoderLayer):
    """Attention, then experts (or a gated MLP)."""


class SlicedQwen2MoeForCausalLM(SlicedCausalLM, Qwen2MoeForCausalLM):
    """A Qwen2Moe with a narrower residual stream."""

    config_class = SlicedQwen2MoeConfig
    block_class = SlicedQwen2MoeDecoderLayer
    _no_split_modules = ["SlicedQwen2MoeDecoderLayer"]
