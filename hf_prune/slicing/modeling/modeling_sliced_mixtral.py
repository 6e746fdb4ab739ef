"""A sliced Mixtral: its own decoder layer with narrower maps, router and experts, and shortcuts."""

from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralForCausalLM

from .configuration_sliced_mixtral import SlicedMixtralConfig
from .sliced import SlicedCausalLM
from .sliced_moe import SlicedExpertsBlock


class SlicedMixtralDecoderLayer(SlicedExpertsBlock, MixtralDecoderLayer):
    """Attention, then experts (or a gated MLP)."""


class SlicedMixtralForCausalLM(SlicedCausalLM, MixtralForCausalLM):
    """A Mixtral with a narrower residual stream."""

    config_class = SlicedMixtralConfig
    block_class = SlicedMixtralDecoderLayer
    _no_split_modules = ["SlicedMixtralDecoderLayer"]
