"""Configuration of a sliced Llama."""

from transformers.models.llama.configuration_llama import LlamaConfig


class SlicedLlamaConfig(LlamaConfig):
    """A Llama whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_llama"
