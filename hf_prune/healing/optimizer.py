"""Which optimizers healing takes, and whether one runs on the device it is asked for."""

import re
import tempfile

import torch
from torch import nn

from hf_prune.errors import ConfigError
from hf_prune.registry import did_you_mean

# Those that need more than a name (which modules, which rank), other loops than Trainer's plain one, or train weights
# that are not the ones to be measured and saved.
_LEFT_OUT = re.compile(r"galore|apollo|lomo|schedule_free|layerwise|_xla|_npu")
_TRIED_WITH = 8192  # numbers; optimizers of 8 bits keep small tensors in 32


def optimizer_names() -> list[str]:
    """Names of Transformers' optimizers that healing takes."""
    from transformers.training_args import OptimizerNames

    return [name.value for name in OptimizerNames if not _LEFT_OUT.search(name.value)]


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimizer that is unknown, or whose package is missing or does not run here, before any work.

    Args:
        name: `HealingConfig.optimizer`.
        device: where it is to run; it makes a step on a small tensor there.

    Raises:
        ConfigError: see above.
    """
    from transformers import Trainer, TrainingArguments

    known = optimizer_names()
    if name not in known:
        raise ConfigError(
            f"healing.optimizer={name!r}; expected one of: {', '.join(known)}.{did_you_mean(name, known)}"
        )
    weight = nn.Parameter(torch.ones(_TRIED_WITH, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(folder, optim=name, report_to="none", use_cpu=device.type == "cpu")
        made, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        made([weight], **options).step()
        moved = bool((weight != 1.0).any()) and bool(weight.isfinite().all())
    # Each optimizer's package has errors of its own for devices that it doesn't know.
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"healing.optimizer={name!r} does not run on {device.type}: {said}. Take 'adamw_torch', or install what "
            "it needs"
        ) from error
    if not moved:
        raise ConfigError(
            f"healing.optimizer={name!r} does not train on {device.type}: a step left a tensor as it was, or not "
            "finite. Take 'adamw_torch'"
        )
