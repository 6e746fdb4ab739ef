"""The fitting stage as a plain function: a plan that drops blocks in, one that also says what stands in out."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.fitting.task import Fitted, Task
from hf_prune.records import Operation, Plan
from hf_prune.registry import fitted


def fit(
    plan: Plan,
    decoder: Decoder,
    surgery: str,
    options: dict[str, Any],
    folder: Path,
    *,
    sequences: Sequence[torch.Tensor] = (),
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Plan:
    """Fit a surgery to a model.

    Args:
        plan: drops blocks.
        decoder: the model that the plan was made for, whole; it stays as it is.
        surgery: registry name.
        options: of it.
        folder: where the fitted tensors go, as `Plan.FITTED`, and hidden states that memory has no room for.
        sequences: 1-D int64 calibration sequences.
        batch_size: of them at once.
        seed: of whatever is drawn.
        progress: whether to show a bar.

    Raises:
        ConfigError: the surgery cannot be done on this model, or with this little text; names why.
        ArchitectureError: it is not exact for this family; names why.
    """
    entry = fitted.get(surgery)
    entry.check_options(options, "surgery")
    if len(plan.operations) != 1 or plan.operations[0].kind != "drop":
        raise ConfigError(f"surgery '{surgery}' is fitted where whole blocks go; the plan does: {plan.describe()}")
    task = Task(decoder, plan.dropped, sequences, batch_size, seed, folder, progress)
    made: Fitted = entry.function(task, **options)
    if not made.tensors:
        return dataclasses.replace(plan, operations=made.operations, fits=made.notes, fitted=None)
    path = Path(folder) / Plan.FITTED
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in made.tensors.items()}, path)
    named: list[Operation] = []
    for operation in made.operations:
        named.append(
            dataclasses.replace(operation, options={**operation.options, "file": Plan.FITTED})
            if operation.kind == "replace"
            else operation
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(plan, operations=tuple(named), fits=made.notes, fitted=digest).at(folder)
