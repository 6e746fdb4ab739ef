"""What became of each layer of the base, in one word or two: for maps in text, in pictures and on pages."""

from typing import Literal, get_args

from hf_prune.records import Plan
from hf_prune.units import layers_of

State = Literal[
    "kept",
    "weights changed",
    "attention silenced",
    "MLP silenced",
    "attention and MLP silenced",
    "without attention",
    "without MLP",
    "without attention and MLP",
    "removed",
]
STATES: tuple[State, ...] = get_args(State)
"""In the order of legends."""


def layer_states(plan: Plan) -> tuple[State, ...]:
    """One state a layer.

    Args:
        plan: which blocks were dropped, which parts silenced or taken out, and in which blocks weights were scaled
            or fitted.
    """
    gone, attention, mlp = (set(layers_of(plan.removed, part)) for part in ("block", "attention", "mlp"))  # type: ignore[arg-type]
    changed = {i for op in plan.operations if op.kind in ("scale", "replace", "mask") for i in op.layers}

    def state(layer: int) -> State:
        if layer in gone:
            return "removed"
        if layer in attention and layer in mlp:
            return "without attention and MLP" if plan.hard else "attention and MLP silenced"
        if layer in attention:
            return "without attention" if plan.hard else "attention silenced"
        if layer in mlp:
            return "without MLP" if plan.hard else "MLP silenced"
        return "weights changed" if layer in changed else "kept"

    return tuple(map(state, range(plan.model.num_layers)))


def layers_in(plan: Plan) -> dict[State, tuple[int, ...]]:
    """The layers of each state that occurs, in the order of `STATES`."""
    states = layer_states(plan)
    found = {state: tuple(i for i, own in enumerate(states) if own == state) for state in STATES}
    return {state: layers for state, layers in found.items() if layers}
