"""A patched Qwen3: its own decoder layer, without the parts that are gone."""

from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM

from .configuration_patched_qwen3 import PatchedQwen3Config
from .patched import PatchedBlock, PatchedCausalLM


class PatchedQwen3DecoderLayer(PatchedBlock, Qwen3DecoderLayer):
    """Attention, then a gated MLP, where they are there."""


class PatchedQwen3ForCausalLM(PatchedCausalLM, Qwen3ForCausalLM):
    """A Qwen3 whose blocks lack parts."""

    config_class = PatchedQwen3Config
    block_class = PatchedQwen3DecoderLayer
    _no_split_modules = ["PatchedQwen3DecoderLayer"]
