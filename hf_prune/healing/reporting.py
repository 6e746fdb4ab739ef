"""Where training may be logged to, beside the bar: Trainer's own integrations."""

from collections.abc import Sequence
from pathlib import Path

from hf_prune import extras
from hf_prune.errors import ConfigError, MissingExtraError
from hf_prune.registry import did_you_mean

REPORTS = ("tensorboard", "wandb", "trackio")


def check_reporting(report_to: Sequence[str]) -> None:
    """Refuse loggers that are unknown or not installed, before any work.

    Args:
        report_to: `HealingConfig.report_to`.

    Raises:
        ConfigError: an unknown name.
        MissingExtraError: its package is not installed.
    """
    for name in report_to:
        if name not in REPORTS:
            raise ConfigError(
                f"healing.report_to={name!r}; expected any of: {', '.join(REPORTS)}."
                f"{did_you_mean(name, list(REPORTS))}"
            )
        if not extras.available(name):
            raise MissingExtraError(
                f"healing.report_to={name!r} needs the package '{name}', which is not installed. Install it with: pip "
                f"install {name}"
            )


def log_into(callbacks: Sequence[object], folder: Path) -> None:
    """Let TensorBoard's files lie in the run folder; the others have places of their own.

    Args:
        callbacks: Trainer's.
        folder: where to.
    """
    from transformers.integrations import TensorBoardCallback

    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)
