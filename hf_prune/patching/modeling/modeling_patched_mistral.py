"""A patched Mistral: its own decoder layer, without the parts that are gone."""

from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralForCausalLM

from .configuration_patched_mistral import PatchedMistralConfig
from .patched import PatchedBlock, PatchedCausalLM


class PatchedMistralDecoderLayer(PatchedBlock, MistralDecoderLayer):
    """Attention, then a gated MLP, where they are there."""


class PatchedMistralForCausalLM(PatchedCausalLM, MistralForCausalLM):
    """A Mistral whose blocks lack parts."""

    config_class = PatchedMistralConfig
    block_class = PatchedMistralDecoderLayer
    _no_split_modules = ["PatchedMistralDecoderLayer"]
