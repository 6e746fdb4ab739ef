"""What a plan leaves in the config of a patched model."""

from typing import Any

from hf_prune.architecture.families import PATCHED
from hf_prune.records import Plan


def patched_settings(plan: Plan) -> dict[str, Any]:
    """The keys that a stock model's config does not have, or has otherwise; positions are those of the cut model.

    Args:
        plan: that takes parts out, or puts maps in.
    """
    place = {layer: position for position, layer in enumerate(plan.kept)}

    def positions(kind: str, **options: str) -> list[int]:
        operations = [op for op in plan.operations if op.kind == kind and options.items() <= op.options.items()]
        return sorted(place[i] for op in operations for i in op.layers if i in place)

    found: dict[str, Any] = {
        "model_type": PATCHED + plan.model.model_type,
        "removed_parts": {part: positions("remove", part=part) for part in ("attention", "mlp")},
    }
    if linear := positions("linearize"):
        found["linear_attention"] = linear
    if patched := positions("patch"):
        (rank,) = {op.options.get("rank") for op in plan.operations if op.kind == "patch"}
        found |= {"stream_patches": patched, "stream_rank": rank}
    return found
