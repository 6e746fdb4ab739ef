"""Configuration of a sliced GPTNeoX."""

from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig


class SlicedGPTNeoXConfig(GPTNeoXConfig):
    """A GPTNeoX whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_gpt_neox"
