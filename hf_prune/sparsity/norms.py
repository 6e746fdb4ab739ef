"""How large the inputs of each linear map are, feature by feature."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.errors import ArchitectureError, MeasureError
from hf_prune.observing import Place
from hf_prune.sparsity.maps import LinearMap


class InputNorms:
    """Running sums of squares of what enters each linear map, over all tokens that are no pads.

    The norm of feature j over all tokens is the root of its sum: ||X_j||_2 of Wanda (arXiv:2306.11695, section 3). The
    released code divides the squares by the number of sequences; one factor for all scores, which changes no order
    and no share of outliers.

    Args:
        maps: which ones.
    """

    def __init__(self, maps: Sequence[LinearMap]) -> None:
        self._maps = tuple(maps)
        # Of each map the sum of squares of each of its inputs, and behind them the number of tokens.
        self._sums = [torch.zeros(each.matrix.shape[1] + 1, dtype=torch.float64) for each in self._maps]
        self._entered: dict[int, list[torch.Tensor]] = {}

    @contextmanager
    def around(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Catch what enters the maps of a block while it runs; pads are told apart in `see`."""
        del block  # its maps are known
        self._entered.clear()
        with ExitStack() as stack:
            for number, each in enumerate(self._maps):
                if each.layer == layer:
                    entered = self._entered.setdefault(number, [])
                    hook = each.module.register_forward_pre_hook(lambda _m, given, into=entered: into.append(given[0]))
                    stack.callback(hook.remove)
            yield

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add the squares of one batch.

        Raises:
            ArchitectureError: a map is not called with one state a token.
        """
        del at, inputs, outputs
        squares: dict[int, torch.Tensor] = {}  # maps that read the same tensor, as q, k and v do, share the work
        for number, entered in self._entered.items():
            for states in entered:
                if id(states) not in squares:
                    squares[id(states)] = _squares(states, mask, self._maps[number])
                self._sums[number] += squares[id(states)]
        self._entered.clear()

    def sums(self) -> list[torch.Tensor]:
        """Of each map (inputs + 1,): the sum of squares of each input, and the number of tokens."""
        return self._sums

    def result(self) -> dict[str, Any]:
        """The `norms`, see `of`."""
        return {"norms": tuple(self.of(each) for each in self._maps)}

    def of(self, each: LinearMap) -> torch.Tensor:
        """(inputs,) float64: the norm of each input of a map over all tokens, on the CPU.

        Args:
            each: one of the maps.

        Raises:
            MeasureError: none were seen, or they are NaN or infinite.
        """
        *_, tokens = sums = self._sums[self._maps.index(each)]
        if not tokens:
            raise MeasureError(
                f"no inputs of {each} were seen: no token of the calibration text has reached it, or the model uses "
                "its weight without calling it. Take more text (--samples), or scores that need none (magnitude, lamp)"
            )
        norms = sums[:-1].sqrt()
        if not torch.isfinite(norms).all():
            raise MeasureError(
                f"the inputs of {each} are NaN or infinite; expected finite numbers. Try another --dtype (bfloat16 or "
                "float32 instead of float16)"
            )
        return norms


def _squares(states: torch.Tensor, mask: torch.Tensor, each: LinearMap) -> torch.Tensor:
    """(inputs + 1,) float64 on the CPU: sums of squares over the tokens that are no pads, and how many there are."""
    if states.shape[:-1] not in (mask.shape, (mask.numel(),)):  # OPT puts the tokens of all sequences in a row
        raise ArchitectureError(
            f"{each} is called with a tensor of shape {list(states.shape)} for {list(mask.shape)} tokens; expected "
            "one state a token, so that pads can be left out. Take scores that need no text (magnitude, lamp)"
        )
    real = mask.reshape(-1).bool().to(states.device)
    tokens = states.reshape(-1, states.shape[-1])[real]
    # Squares of half precision overflow. Metal has no float64.
    wide = (tokens.cpu() if tokens.device.type == "mps" else tokens).double()
    return torch.cat([wide.square().sum(0), wide.new_full((1,), len(wide))]).cpu()
