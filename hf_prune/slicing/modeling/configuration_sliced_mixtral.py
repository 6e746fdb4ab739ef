"""Configuration of a sliced Mixtral."""

from transformers.models.mixtral.configuration_mixtral import MixtralConfig


class SlicedMixtralConfig(MixtralConfig):
    """A Mixtral whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_mixtral"
