"""Configuration of a sliced Mistral."""

from transformers.models.mistral.configuration_mistral import MistralConfig


class SlicedMistralConfig(MistralConfig):
    """A Mistral whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_mistral"
