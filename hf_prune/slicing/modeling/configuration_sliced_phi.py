"""Configuration of a sliced Phi."""

from transformers.models.phi.configuration_phi import PhiConfig


class SlicedPhiConfig(PhiConfig):
    """A Phi whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_phi"
