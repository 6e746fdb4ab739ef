"""Carry out a plan on a model in memory."""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.architecture.decoder import structural_copy
from hf_prune.errors import ConfigError
from hf_prune.fit import check_fitted
from hf_prune.records import Operation, Plan
from hf_prune.registry import surgery
from hf_prune.surgery.drop import check_layers
from hf_prune.surgery.edits import Edits

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


def copy_apart(decoder: Decoder, plan: Plan) -> PreTrainedModel:
    """A second model that stays as it is when a plan is carried out on the first, or the other way round.

    The weights that the plan writes into are copied; all others are the same tensors in both.

    Args:
        decoder: the model that the plan was made for.
        plan: of operations that can be carried out from file to file.

    Raises:
        ConfigError: as `apply_plan`.
        CheckpointError: likewise.
    """
    edits, kept = Edits(), structural_copy(decoder.model)

    def note(view: Decoder, operation: Operation, positions: tuple[int, ...]) -> Decoder:
        streamed = surgery.get(operation.kind).streamed
        assert streamed is not None, operation.kind
        cut: Decoder = streamed(view, positions, edits, **operation.options)
        return cut

    if not plan.only_drops:
        apply_plan(decoder_of(structural_copy(decoder.model), decoder.name), plan, note)
    own: dict[int, nn.Parameter] = {}
    for module in kept.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if edits.of(parameter):
                copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, own.setdefault(id(parameter), copied))
    return kept


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
