"""hf_prune: remove the layers of a language model that matter least, heal it, prove it, push it to the Hub."""

import importlib
from typing import TYPE_CHECKING, Any

from hf_prune import registration

if TYPE_CHECKING:
    from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
    from hf_prune.errors import PruneError
    from hf_prune.exporting.base_adapter import export_base_adapter
    from hf_prune.exporting.nf4 import export_nf4
    from hf_prune.pruner import Pruner
    from hf_prune.records import Evaluation, Healing, Plan, Scores
    from hf_prune.slicing.export import export_plain
    from hf_prune.surgery import prune_layers

__version__ = "0.1.0"

_HOMES = {
    "CalibrationConfig": "config",
    "Evaluation": "records",
    "EvaluationConfig": "config",
    "Healing": "records",
    "HealingConfig": "config",
    "Plan": "records",
    "PruneError": "errors",
    "Pruner": "pruner",
    "PrunerConfig": "config",
    "Scores": "records",
    "export_base_adapter": "exporting.base_adapter",
    "export_nf4": "exporting.nf4",
    "export_plain": "slicing.export",
    "prune_layers": "surgery",
}

__all__ = [
    "CalibrationConfig",
    "Evaluation",
    "EvaluationConfig",
    "Healing",
    "HealingConfig",
    "Plan",
    "PruneError",
    "Pruner",
    "PrunerConfig",
    "Scores",
    "__version__",
    "export_base_adapter",
    "export_nf4",
    "export_plain",
    "prune_layers",
]

registration.install()


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import hf_prune` and `--help` stay fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_prune' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hf_prune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
