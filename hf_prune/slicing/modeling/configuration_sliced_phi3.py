"""Configuration of a sliced Phi3."""

from transformers.models.phi3.configuration_phi3 import Phi3Config


class SlicedPhi3Config(Phi3Config):
    """A Phi3 whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_phi3"
