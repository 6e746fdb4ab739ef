"""Configuration of a sliced Qwen2Moe."""

from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig


class SlicedQwen2MoeConfig(Qwen2MoeConfig):
    """A Qwen2Moe whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_qwen2_moe"
