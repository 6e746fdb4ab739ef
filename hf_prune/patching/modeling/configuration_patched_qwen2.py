"""Configuration of a patched Qwen2."""

from transformers.models.qwen2.configuration_qwen2 import Qwen2Config


class PatchedQwen2Config(Qwen2Config):
    """A Qwen2 whose blocks lack parts, as `removed_parts` says (see `patched.py`)."""

    model_type = "patched_qwen2"
