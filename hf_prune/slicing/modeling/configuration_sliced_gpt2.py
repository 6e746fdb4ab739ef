"""Configuration of a sliced GPT2."""

from transformers.models.gpt2.configuration_gpt2 import GPT2Config


class SlicedGPT2Config(GPT2Config):
    """A GPT2 whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_gpt2"
