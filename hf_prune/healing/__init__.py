"""Healing: LoRA or QLoRA on what pruning left, merged into plain weights, with the loss measured at every station."""

from hf_prune.healing.adapter import set_adapter_base
from hf_prune.healing.held_out import held_out_loss
from hf_prune.healing.job import planned_steps, require
from hf_prune.healing.pipeline import HealResult, heal, merge_loss_share
from hf_prune.healing.recipes import RECIPES
from hf_prune.healing.settings import resolve

__all__ = [
    "RECIPES",
    "HealResult",
    "heal",
    "held_out_loss",
    "merge_loss_share",
    "planned_steps",
    "require",
    "resolve",
    "set_adapter_base",
]
