"""The embedded default: a small real trained model with its tokenizer, and the recipe that makes such a model."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_prune.config import PrunerConfig

NAME = "gutenberg-llama-12l"
"""Folder of the embedded model, and what records and cards call it."""


def model_folder() -> Path:
    """The folder of the embedded model, the same from a checkout and from an installed wheel."""
    return Path(str(files(__name__).joinpath(NAME)))


def config() -> "PrunerConfig":
    """What the demo does: 4 of 12 layers go, then healing with settings for a few hundred thousand tokens.

    The paper's learning rate is made for a thousand times as many tokens; with so few, a higher one is needed.
    """
    from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig

    return PrunerConfig(
        method="uidl",
        drop_layers=4,
        base_model=None,
        calibration=CalibrationConfig(samples=128, max_length=256, batch_size=32),
        healing=HealingConfig(
            tokens=384 * 1024,
            max_length=256,
            batch_size=8,
            learning_rate=3e-3,
            warmup_steps=10,
            quantize="none",
            held_out_samples=48,
        ),
        evaluation=EvaluationConfig(samples=96, max_length=256),
    )
