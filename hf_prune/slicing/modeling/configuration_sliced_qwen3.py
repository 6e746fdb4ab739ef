"""Configuration of a sliced Qwen3."""

from transformers.models.qwen3.configuration_qwen3 import Qwen3Config


class SlicedQwen3Config(Qwen3Config):
    """A Qwen3 whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_qwen3"
