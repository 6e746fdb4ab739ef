"""Configuration of a patched Llama."""

from transformers.models.llama.configuration_llama import LlamaConfig


class PatchedLlamaConfig(LlamaConfig):
    """A Llama whose blocks lack parts, as `removed_parts` says (see `patched.py`)."""

    model_type = "patched_llama"
