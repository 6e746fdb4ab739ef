"""The fitting stage as a plain function: a plan that drops blocks in, one that also says what stands in out."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_prune.architecture import Decoder
from hf_prune.errors import CheckpointError, ConfigError, PruneError
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
    wanted = ("drop", None) if entry.unit == "block" else ("remove", entry.unit)
    if (entry.cuts == "weights") != (plan.sparsity is not None) or (
        entry.cuts == "layers" and [(op.kind, op.options.get("part")) for op in plan.operations] != [wanted]
    ):
        goes = "single weights become zero" if entry.cuts == "weights" else f"whole {entry.unit}s go"
        raise ConfigError(f"surgery '{surgery}' is fitted where {goes}; the plan does: {plan.describe()}")
    layers = tuple(unit.layer for unit in plan.removed)
    task = Task(decoder, layers, sequences, batch_size, seed, folder, progress, plan.sparsity)
    made: Fitted = entry.function(task, **options)
    plan = dataclasses.replace(plan, surgery=surgery, surgery_options=dict(options))
    if not made.tensors:
        return dataclasses.replace(plan, operations=made.operations, fits=made.notes, fitted=None)
    path = Path(folder) / Plan.FITTED
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in made.tensors.items()}, path)
    named: list[Operation] = []
    for operation in made.operations:
        named.append(
            dataclasses.replace(operation, options={**operation.options, "file": Plan.FITTED})
            if operation.reads_fitted
            else operation
        )
    return dataclasses.replace(plan, operations=tuple(named), fits=made.notes, fitted=_sha256(path)).at(folder)


def check_fitted(plan: Plan) -> None:
    """Refuse a plan whose fitted tensors are not where it names them, or are not those that were fitted for it.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it holds something else.
    """
    for operation in plan.operations:
        if not operation.reads_fitted:
            continue
        path = Path(operation.options.get("file", ""))
        if not path.is_file():
            raise ConfigError(
                f"there is no file of fitted tensors '{path}'; fit them again (plan, run), or bring the file: it lies "
                "beside plan.json where the plan was made, and is not part of a pruned model"
            )
        if plan.fitted is not None and _sha256(path) != plan.fitted:
            raise CheckpointError(
                f"'{path}' is not the file of fitted tensors that the plan was made with (sha256 "
                f"{plan.fitted[:12]}…): it belongs to another plan, or was changed. Bring the right one, or plan again"
            )


def fitted_is_there(plan: Plan) -> bool:
    """Whether a plan can be carried out with the fitted tensors that it names, if it does."""
    try:
        check_fitted(plan)
    except PruneError:
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
