"""A patched Llama: its own decoder layer, without the parts that are gone."""

from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from .configuration_patched_llama import PatchedLlamaConfig
from .patched import PatchedBlock, PatchedCausalLM


class PatchedLlamaDecoderLayer(PatchedBlock, LlamaDecoderLayer):
    """Attention, then a gated MLP, where they are there."""


class PatchedLlamaForCausalLM(PatchedCausalLM, LlamaForCausalLM):
    """A Llama whose blocks lack parts."""

    config_class = PatchedLlamaConfig
    block_class = PatchedLlamaDecoderLayer
    _no_split_modules = ["PatchedLlamaDecoderLayer"]
