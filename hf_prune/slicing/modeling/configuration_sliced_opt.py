"""Configuration of a sliced OPT."""

from transformers.models.opt.configuration_opt import OPTConfig


class SlicedOPTConfig(OPTConfig):
    """A OPT whose residual stream is rotated and narrower than `hidden_size`, by layer (see `sliced.py`)."""

    model_type = "sliced_opt"
