"""Every error that hf_prune raises on purpose.

    PruneError (ValueError)
    ├── ConfigError          a setting is wrong, unknown, or contradicts another
    ├── ArchitectureError    the model's architecture cannot be pruned (or not this way)
    ├── CheckpointError      weights are missing, truncated, pickled, or disagree with the config
    ├── StreamError          a checkpoint cannot be cut file to file; in memory it may be
    ├── DataError            calibration, healing or evaluation text is missing or unusable
    ├── MeasureError         a measurement met numbers that mean nothing (NaN, infinity)
    ├── OutputError          an output folder cannot be written or pushed, or holds something else
    ├── ReloadError          a saved model does not load back as what was saved
    ├── HubError             the Hub refused, or answered with something else than what was sent
    │   └── RangeError       it does not send parts of files as asked; whole files may still come
    └── MissingExtraError    an optional dependency is not installed

Each message names the thing, the value, what was expected, and what to do.
"""


class PruneError(ValueError):
    """Base of every error that hf_prune raises on purpose."""


class ConfigError(PruneError):
    """A setting is wrong, unknown, or contradicts another one."""


class ArchitectureError(PruneError):
    """The model's architecture cannot be pruned, or not in the way asked for."""


class CheckpointError(PruneError):
    """Weights are missing, truncated, pickled, or disagree with the config."""


class StreamError(PruneError):
    """This checkpoint cannot be cut file to file; in memory it may be."""


class DataError(PruneError):
    """Calibration, healing or evaluation text is missing or unusable."""


class MeasureError(PruneError):
    """A measurement met numbers that mean nothing."""


class OutputError(PruneError):
    """An output folder cannot be written or pushed, or holds something else."""


class ReloadError(PruneError):
    """A saved model does not load back as what was saved."""


class HubError(PruneError):
    """The Hub refused, or holds something else than what was sent."""


class RangeError(HubError):
    """The Hub, or what stands between, does not send parts of files as they were asked for."""


class MissingExtraError(PruneError):
    """An optional dependency is not installed."""
