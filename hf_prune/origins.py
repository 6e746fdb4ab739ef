"""What healing has to know of a plan: where the pruned model comes from."""

from collections.abc import Callable

from transformers import PreTrainedModel

from hf_prune.healing.origin import Origin
from hf_prune.loading import Source
from hf_prune.records import Plan

_STRUCTURAL = ("drop", "patch")
"""Operations that leave the weights of the blocks that stay as they are."""

_STANDING_IN = ("replace", "linearize")
"""Operations that put fitted tensors in the place of a block's own."""

RESCALING = "compensate"
"""The fitted surgery that replaces gains of norms by the same ones divided, which stands in for nothing."""


def origin_of(
    plan: Plan,
    load: Callable[[], PreTrainedModel] | None = None,
    key: str = "",
    source: Callable[[], Source | None] | None = None,
) -> Origin:
    """Where the model that a plan makes comes from.

    Blocks are changed by whatever writes into their weights: "scale", "replace", "mask", "linearize", "silence" and
    "remove"; slicing writes into all of them. Replaced are those whose own tensors gave way to fitted ones, to stand
    in for what is gone: by surgery "streamline" (the block that was trained), "merge" (the one that took the others
    in), "replaceme" and "replaceme_cosine" (the one whose MLP a map was folded into) and "nbl" (those whose attention
    is a linear map). What "compensate" divides is changed, and not replaced.

    Args:
        plan: what was done.
        load: gives the original; None where it is not at hand.
        key: stands for its weights.
        source: gives its files; None, or giving None, where it lies in none.
    """
    place = {layer: position for position, layer in enumerate(plan.kept)}

    def positions(*kinds: str) -> tuple[int, ...]:
        layers = {i for op in plan.operations if op.kind in kinds for i in op.layers}
        return tuple(sorted(place[i] for i in layers if i in place))

    kinds = {op.kind for op in plan.operations}
    return Origin(
        kept=plan.kept,
        depth=plan.model.num_layers,
        changed=positions(*(kinds - set(_STRUCTURAL))) if plan.slicing is None else tuple(range(len(plan.kept))),
        silent=plan.silenced,
        patched=positions("patch"),
        replaced=() if plan.surgery == RESCALING else positions(*_STANDING_IN),
        rescaled=plan.surgery == RESCALING and bool(positions("scale", "replace")),
        load=load,
        source=source,
        key=key,
    )
