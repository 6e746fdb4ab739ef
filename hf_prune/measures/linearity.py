"""How close the attention of each block comes to a linear map of what enters the block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.architecture.sublayers import has_part, silenced
from hf_prune.block_calls import first
from hf_prune.errors import MeasureError
from hf_prune.joint_moments import JointMoments, correlations
from hf_prune.observing import Place
from hf_prune.registry import measure


@measure(
    "linearity",
    title="How far the attention of each block is from a linear map, by canonical correlation",
    url="https://arxiv.org/abs/2505.21077",
    needs="pass",
    scores=("attention",),
)
def linearity() -> "Linearity":
    """Σ (1 - ρ_i²) over the canonical correlations ρ_i between x and x + attention(x), at least 0 (NBL section 3).

    x is the stream that enters a block, before its norm, as in the released code, and pads are left out. The sum
    bounds the share of the variance of x + attention(x) that the best linear map of x leaves unexplained. Directions
    in which x + attention(x) does not vary do not count; the released code divides by their variance of zero.

    Each layer keeps (2 width + 1)² float64 numbers while text passes: 0.5 GB at width 4096.
    """
    return Linearity()


class Linearity:
    """Joint moments of what enters each block and of that with what its attention adds.

    The latter is what leaves the block when it runs once more with its MLP silenced. Blocks without an attention or an
    MLP that could go have no figure.
    """

    def __init__(self) -> None:
        self._seen: list[JointMoments | None] = []
        self._behind: torch.Tensor | None = None
        self._runs = torch.zeros(2, dtype=torch.float64)  # blocks that were shown, and how often they ran

    @contextmanager
    def around(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Let the block run again without its MLP, right after each run."""
        del layer

        def ran(_block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], _output: Any) -> None:
            self._behind = None
            self._runs[0] += 1
            if has_part(block, "attention") and has_part(block, "mlp"):
                self._runs += torch.tensor([0.0, 1.0])
                with silenced(block, ["mlp"]):
                    self._behind = first(block.forward(*args, **kwargs))  # not the call: that would come back here
            self._runs[1] += 1

        handle = block.register_forward_hook(ran, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch's tokens to the layer's sums."""
        del outputs
        if not self._seen:
            self._seen = [None] * at.depth
        behind, self._behind = self._behind, None
        if behind is None:
            return
        moments = self._seen[at.layer] or JointMoments.zeros(inputs.shape[-1])
        self._seen[at.layer] = moments
        moments.add(*(states[mask.bool().to(states.device)].cpu() for states in (inputs, behind)))

    def sums(self) -> list[torch.Tensor]:
        """(2 width + 1, 2 width + 1) of each block that has a figure, see `JointMoments`; blocks shown, and runs."""
        return [*(moments.table for moments in self._seen if moments is not None), self._runs]

    def result(self) -> dict[str, Any]:
        """`importances` of the attentions, and `forwards`.

        Raises:
            MeasureError: there are too few tokens.
        """
        assert self._seen, "no batch was seen"
        return {
            "importances": {"attention": tuple(None if one is None else _distance(one) for one in self._seen)},
            "forwards": float(self._runs[1] / self._runs[0]),
        }


def _distance(moments: JointMoments) -> float:
    if moments.tokens <= moments.width:
        raise MeasureError(
            f"measure 'linearity' correlates {moments.width} channels over {moments.tokens} tokens, of which any "
            "states are a linear map; expected more tokens than channels, ten times as many at best. Take more "
            "--samples, or longer ones (--max-length)"
        )
    return float((1 - correlations(moments).square()).sum())
