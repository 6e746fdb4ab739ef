"""Whether records that were read can be true: those of a repo are a stranger's, and may say anything."""

import math
import re
import sys
from typing import Any

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.markdown import one_line
from hf_prune.records import Operation, Plan, Scores
from hf_prune.units import PARTS

KINDS = ("drop", "slice", "silence", "remove", "linearize", "patch", "scale", "replace", "mask")
"""What a plan can do: the surgeries that need no fitting any more."""

_SHA256 = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")


def check_plan(plan: Plan) -> None:
    """Refuse a plan whose operations nobody can carry out, or that contradicts itself.

    Blocks are not counted one by one: a record may speak of any number of them.

    Raises:
        ConfigError: names the operation, and what was expected.
    """
    for operation in plan.operations:
        _check_operation(operation)
    replaced = [operation for operation in plan.operations if operation.reads_fitted]
    if len(replaced) > 1 or bool(replaced) != (plan.fitted is not None):
        raise ConfigError(
            f"the plan has {len(replaced)} operations 'replace' or 'mask' and names {'a' if plan.fitted else 'no'} "
            "file of fitted tensors; expected one of both, or none"
        )
    if plan.fitted is not None and not _SHA256.fullmatch(plan.fitted):
        raise ConfigError(f"the plan's fitted={_told(plan.fitted)}; expected a sha256 of 64 hexadecimal digits")
    if plan.slicing is not None and {operation.kind for operation in plan.operations} - {"slice", "drop"}:
        raise ConfigError("the plan slices and changes weights as well; expected one operation 'slice'")
    gone: set[int] = set()
    for operation in plan.operations if plan.slicing is None else ():
        if twice := gone & set(operation.layers):
            raise ConfigError(
                f"operation '{operation.kind}' of the plan acts on the blocks {sorted(twice)[:8]}, which are gone by "
                "then; plan again"
            )
        gone |= set(operation.layers) if operation.kind == "drop" else set()
    if (plan.sparsity is not None) != ("mask" in {operation.kind for operation in plan.operations}):
        raise ConfigError(
            f"the plan's sparsity={plan.sparsity}, and its operations are "
            f"{[operation.kind for operation in plan.operations]}; expected a share and an operation 'mask', or "
            "neither"
        )
    if plan.sparsity is not None and not 0 < plan.sparsity < 1:
        raise ConfigError(f"the plan's sparsity={plan.sparsity}; expected a share above 0 and below 1")
    if plan.forwards is not None and not (math.isfinite(plan.forwards) and plan.forwards >= 0):
        raise ConfigError(f"the plan's forwards={plan.forwards}; expected a number from 0")
    for trial in plan.trials:
        if not math.isfinite(trial.score) or trial.tried < 0 or not trial.removed:
            raise ConfigError(
                f"the plan's search tried {trial.tried} cuts of {len(trial.removed)} parts and scored {trial.score}; "
                "expected counts, and a finite number"
            )


def check_blocks(plan: Plan) -> None:
    """Refuse a plan that speaks of blocks which its model does not have, or leaves none.

    Raises:
        ConfigError: names them.
    """
    depth = plan.model.num_layers
    units = {unit.layer for trial in plan.trials for unit in trial.removed}
    outside = sorted(i for i in {i for op in plan.operations for i in op.layers} | units if not 0 <= i < depth)
    if outside:
        raise ConfigError(f"the plan speaks of layers {outside[:8]}; the model has {depth}, counted 0 to {depth - 1}")
    if len(plan.dropped) >= depth:
        raise ConfigError(f"the plan drops all {depth} layers of the model; expected one at least to stay")


def check_importances(scores: Scores) -> None:
    """Refuse importances that are not one figure a layer, or not finite.

    Raises:
        ConfigError: an unknown part, or another number of layers; names it.
        MeasureError: a figure is not finite.
    """
    depth = scores.model.num_layers
    for what, rows in (("importances", scores.importances), ("standard errors", scores.importance_errors)):
        for part, row in rows.items():
            if part not in PARTS or part not in scores.importances:
                raise ConfigError(
                    f"the scores hold {what} of {_told(part)}; expected parts of blocks that are scored: "
                    f"{', '.join(PARTS)}"
                )
            if len(row) != depth:
                raise ConfigError(
                    f"the scores hold {what} of {len(row)} layers ({part}); the model has {depth}. Measure again"
                )
            wrong = next((v for v in row if v is not None and not math.isfinite(v)), None)
            if wrong is not None:
                raise MeasureError(
                    f"the scores hold {what} of {wrong} ({part}); expected finite numbers. Measure again"
                )


def _check_operation(operation: Operation) -> None:
    kind, options = operation.kind, operation.options
    if kind not in KINDS:
        raise ConfigError(f"the plan has an operation {_told(kind)}; expected one of: {', '.join(KINDS)}")
    # Of dropped layers the order says nothing; of others a file of fitted tensors counts them.
    if kind != "drop" and list(operation.layers) != sorted(set(operation.layers)):
        raise ConfigError(f"operation '{kind}' of the plan names its layers twice or not in order; expected ascending")
    if kind in ("silence", "remove") and options.get("part") not in ("attention", "mlp"):
        raise ConfigError(
            f"operation '{kind}' of the plan has the part {_told(options.get('part'))}; expected 'attention' or 'mlp'"
        )
    if kind == "scale":
        names = options.get("weights")
        if not _are_names(names):
            raise ConfigError(
                f"operation 'scale' of the plan has the weights {_told(names)}; expected names such as "
                "'mlp.down_proj.weight'"
            )
        for name in sorted({"factor", *options} - {"weights"}):
            if not _is_finite(options.get(name)):
                raise ConfigError(
                    f"operation 'scale' of the plan has the {one_line(name, 40)} {_told(options.get(name))}; expected "
                    "a finite number"
                )
    if operation.reads_fitted and not isinstance(options.get("file"), str):
        raise ConfigError(f"operation '{kind}' of the plan has the file {_told(options.get('file'))}; expected a name")


def _are_names(names: Any) -> bool:
    return isinstance(names, list | tuple) and all(isinstance(n, str) and _NAME.fullmatch(n) for n in names)


def _is_finite(value: Any) -> bool:
    # Whole numbers of JSON may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _told(value: Any) -> str:
    return one_line(repr(value), 80)
