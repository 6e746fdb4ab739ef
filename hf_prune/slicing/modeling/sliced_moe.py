"""Blocks with experts: the router and every expert read the residual stream, every expert writes to it."""

import dataclasses
from typing import Any

import torch
from torch import nn

from .sliced import GATED_STEPS, Branch, SlicedBlock, Step

_READERS = (
    "mlp.gate", "mlp.experts.gate_up_proj", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj",
    "mlp.shared_expert_gate",
)  # fmt: skip
_WRITERS = ("mlp.experts.down_proj", "mlp.shared_expert.down_proj")


class SlicedExpertsBlock(SlicedBlock):
    """Attention, then experts; some layers may have a plain gated MLP instead."""

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream."""
        attention, mlp = GATED_STEPS
        (gated,) = mlp.branches
        both = dataclasses.replace(gated, readers=(*gated.readers, *_READERS), writers=(*gated.writers, *_WRITERS))
        return attention, dataclasses.replace(mlp, branches=(both,))

    def run(self, branch: Branch, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in any block; the family's own experts answer in the width they were asked in, which is another here."""
        mlp: Any = self.mlp
        if branch.attends or not hasattr(mlp, "experts"):
            return super().run(branch, hidden_states, *args, **kwargs)
        normed = self.get_submodule(branch.norm)(hidden_states)
        flat = normed.reshape(-1, normed.shape[-1])
        _, weights, chosen = mlp.gate(flat)
        answer = _experts(mlp.experts, flat, chosen, weights)
        if hasattr(mlp, "shared_expert"):
            answer = answer + torch.sigmoid(mlp.shared_expert_gate(flat)) * mlp.shared_expert(flat)
        return answer.reshape(*normed.shape[:-1], -1)


def _experts(experts: Any, tokens: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the chosen experts' answers.

    Args:
        experts: stacked weights, `gate_up_proj` (expert, 2 inner, d) and `down_proj` (expert, d', inner).
        tokens: (tokens, d).
        chosen: (tokens, k) expert of each rank.
        weights: (tokens, k) weight of each.

    Returns:
        (tokens, d').
    """
    answer = tokens.new_zeros(len(tokens), experts.down_proj.shape[-2])
    for expert in chosen.unique().tolist():
        token, rank = torch.where(chosen == expert)
        gate, up = nn.functional.linear(tokens[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        written = nn.functional.linear(experts.act_fn(gate) * up, experts.down_proj[expert])
        answer.index_add_(0, token, (written * weights[token, rank, None]).to(answer.dtype))
    return answer
