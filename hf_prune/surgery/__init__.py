"""Surgery: a plan and a model in, a smaller model out."""

from hf_prune.surgery.apply import apply_plan
from hf_prune.surgery.drop import prune_layers

__all__ = ["apply_plan", "prune_layers"]
