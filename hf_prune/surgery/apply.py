"""Carry out a plan on a model in memory."""

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.records import Plan
from hf_prune.registry import surgery
from hf_prune.surgery.drop import check_layers


def apply_plan(decoder: Decoder, plan: Plan) -> Decoder:
    """Carry out the operations of a plan, in place.

    Args:
        decoder: the model that the plan was made for.
        plan: what to do; indices are those of the original model.

    Raises:
        ConfigError: the plan was made for a model of another depth or architecture, or names an unknown operation
            or blocks that are not there.
    """
    check_model(decoder, plan)
    check_layers([i for op in plan.operations for i in op.layers], decoder.num_layers, decoder.name)
    operations = [(surgery.get(op.kind), op) for op in plan.operations]
    for entry, operation in operations:
        entry.check_options(operation.options, "surgery")
    left = list(range(decoder.num_layers))
    for entry, operation in operations:
        decoder = entry.function(decoder, tuple(left.index(i) for i in operation.layers), **operation.options)
        if operation.kind == "drop":
            left = [i for i in left if i not in operation.layers]
    return decoder


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
