"""Carry out a plan on a model in memory."""

from collections.abc import Callable

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.fit import check_fitted
from hf_prune.records import Operation, Plan
from hf_prune.registry import surgery
from hf_prune.surgery.drop import check_layers

Perform = Callable[[Decoder, Operation, tuple[int, ...]], Decoder]
"""Carries out one operation on the blocks at these positions of the model as it is by then."""


def _in_memory(decoder: Decoder, operation: Operation, positions: tuple[int, ...]) -> Decoder:
    result: Decoder = surgery.get(operation.kind).function(decoder, positions, **operation.options)
    return result


def apply_plan(decoder: Decoder, plan: Plan, perform: Perform = _in_memory) -> Decoder:
    """Carry out the operations of a plan, in place.

    Args:
        decoder: the model that the plan was made for.
        plan: what to do; indices are those of the original model.
        perform: carries out one operation.

    Raises:
        ConfigError: the plan was made for a model of another depth or architecture, or names an unknown operation,
            or blocks or a file that are not there.
        CheckpointError: its file of fitted tensors is another one.
    """
    check_model(decoder, plan)
    _check_operations(plan, decoder.name)
    left = list(range(decoder.num_layers))
    for operation in plan.operations:
        decoder = perform(decoder, operation, tuple(left.index(i) for i in operation.layers))
        if operation.kind == "drop":
            left = [i for i in left if i not in operation.layers]
    return decoder


def _check_operations(plan: Plan, name: str) -> None:
    """Refuse unknown operations, and blocks and files that are not there, or not any more, before anything is done."""
    depth = plan.model.num_layers
    if plan.dropped:
        check_layers([i for op in plan.operations if op.kind == "drop" for i in op.layers], depth, name)
    left = set(range(depth))
    for operation in plan.operations:
        surgery.get(operation.kind).check_options(operation.options, "surgery")
        if gone := sorted(set(operation.layers) - left):
            raise ConfigError(
                f"operation '{operation.kind}' of the plan acts on the blocks {gone}, which '{name}' does not have by "
                f"then (of {depth}, counted from 0); plan again"
            )
        if operation.kind == "drop":
            left -= set(operation.layers)
    check_fitted(plan)


def check_model(decoder: Decoder, plan: Plan) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        ConfigError: depth or architecture differ.
    """
    if (plan.model.num_layers, plan.model.model_type) != (decoder.num_layers, decoder.config.model_type):
        raise ConfigError(
            f"the plan was made for '{plan.model.id}' ({plan.model.model_type}, {plan.model.num_layers} blocks); "
            f"'{decoder.name}' is {decoder.config.model_type} with {decoder.num_layers} blocks. Plan again"
        )
