"""Configuration of a sliced Gemma."""

from transformers.models.gemma.configuration_gemma import GemmaConfig


class SlicedGemmaConfig(GemmaConfig):
    """A Gemma whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_gemma"
