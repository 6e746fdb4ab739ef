"""Configuration of a patched Qwen3."""

from transformers.models.qwen3.configuration_qwen3 import Qwen3Config


class PatchedQwen3Config(Qwen3Config):
    """A Qwen3 whose blocks lack parts, as `removed_parts` says (see `patched.py`)."""

    model_type = "patched_qwen3"
