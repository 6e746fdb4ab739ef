"""Configuration of a sliced Falcon."""

from transformers.models.falcon.configuration_falcon import FalconConfig


class SlicedFalconConfig(FalconConfig):
    """A Falcon whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_falcon"
