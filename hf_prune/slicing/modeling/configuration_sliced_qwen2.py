"""Configuration of a sliced Qwen2."""

from transformers.models.qwen2.configuration_qwen2 import Qwen2Config


class SlicedQwen2Config(Qwen2Config):
    """A Qwen2 whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_qwen2"
