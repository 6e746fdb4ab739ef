"""A patched Qwen2: its own decoder layer, without the parts that are gone."""

from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM

from .configuration_patched_qwen2 import PatchedQwen2Config
from .patched import PatchedBlock, PatchedCausalLM


class PatchedQwen2DecoderLayer(PatchedBlock, Qwen2DecoderLayer):
    """Attention, then a gated MLP, where they are there."""


class PatchedQwen2ForCausalLM(PatchedCausalLM, Qwen2ForCausalLM):
    """A Qwen2 whose blocks lack parts."""

    config_class = PatchedQwen2Config
    block_class = PatchedQwen2DecoderLayer
    _no_split_modules = ["PatchedQwen2DecoderLayer"]
