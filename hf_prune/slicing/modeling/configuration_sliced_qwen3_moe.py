"""Configuration of a sliced Qwen3Moe."""

from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig


class SlicedQwen3MoeConfig(Qwen3MoeConfig):
    """A Qwen3Moe whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_qwen3_moe"
