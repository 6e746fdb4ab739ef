"""Means over tokens, and how far the means of samples spread: sums that do not grow with the text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.observing import Place

Value = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(tokens, width) states of one sample before and behind something -> (tokens,) float64, the change of each."""


class TokenSums:
    """Running sums of a table of numbers; the mean is over tokens, so that longer samples weigh more.

    Attributes:
        table: (*shape, 5) float64 on the CPU: tokens, sum of their numbers, samples, sum of the samples' means, and of
            those means' squares.

    Args:
        shape: of the table of numbers.
    """

    def __init__(self, *shape: int) -> None:
        self.table = torch.zeros(*shape, 5, dtype=torch.float64)

    def add(self, where: Any, total: torch.Tensor, tokens: int) -> None:
        """Add one sample.

        Args:
            where: index of the part of the table that was looked at.
            total: float64 sums over the sample's tokens, of that part's shape, on the CPU.
            tokens: how many they are.
        """
        mean, one = total / tokens, torch.ones_like(total)
        self.table[where] += torch.stack([one * tokens, total, one, mean, mean * mean], -1)

    @property
    def samples(self) -> int:
        """Samples that were seen."""
        return int(self.table[..., 2].max())

    def means(self) -> torch.Tensor:
        """(*shape) means over tokens; NaN where nothing was seen."""
        return self.table[..., 1] / self.table[..., 0]

    def errors(self) -> torch.Tensor:
        """(*shape) standard errors: those of the samples' means; NaN where nothing was seen."""
        _, _, samples, means, squares = self.table.unbind(-1)
        # Sample variance from the two sums; rounding may take it a hair below zero.
        variance = ((squares - means**2 / samples) / (samples - 1).clamp(min=1)).clamp(min=0)
        return (variance / samples).sqrt()

    def listed(self, numbers: torch.Tensor) -> tuple[float | None, ...]:
        """One number a row, from `means` or `errors`; None where nothing was seen."""
        seen = (self.table[:, 0] > 0).tolist()
        return tuple(number if there else None for number, there in zip(numbers.tolist(), seen, strict=True))


class LayerMeans:
    """Running mean of a number of each token, a layer: a few sums a layer, whatever the number of samples.

    Blocks that the observer is never shown have no mean.

    Args:
        value: see `Value`; given the states that enter and leave a block, both before any norm.
        tokens: "all", or only the "last" real one of each sample.
        skip_first: leave out the first real token of each sample.

    Raises:
        ConfigError: `tokens` is neither.
    """

    def __init__(self, value: Value, tokens: str = "all", skip_first: bool = False) -> None:
        self._value, self._which = value, check_tokens(tokens)
        self._skip = bool(skip_first)
        self._seen = TokenSums(0)

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch's numbers to the layer's sums.

        Raises:
            MeasureError: a sample has no token to measure.
        """
        if not len(self._seen.table):
            self._seen = TokenSums(at.depth)
        add_samples(self._seen, at.layer, self._value, inputs, outputs, spans(mask, self._which, self._skip))

    def sums(self) -> list[torch.Tensor]:
        """(layers, 5): tokens, sum of their numbers, samples, sum of the samples' means, of those means' squares."""
        return [self._seen.table]

    def result(self) -> dict[str, Any]:
        """`importances` and `importance_errors` of blocks, and the number of `samples`."""
        means, errors, samples = self.found()
        return {"importances": {"block": means}, "importance_errors": {"block": errors}, "samples": samples}

    def found(self) -> tuple[tuple[float | None, ...], tuple[float | None, ...], int]:
        """Means and their standard errors, one a layer, and the number of samples."""
        seen = self._seen
        assert len(seen.table), "no batch was seen"
        return seen.listed(seen.means()), seen.listed(seen.errors()), seen.samples


def check_tokens(tokens: str) -> str:
    """Refuse an unknown choice of tokens.

    Raises:
        ConfigError: it is neither "all" nor "last".
    """
    if tokens not in ("all", "last"):
        raise ConfigError(f"tokens={tokens!r}; expected 'all', or 'last' for the last one of each sample")
    return tokens


def spans(mask: torch.Tensor, tokens: str = "all", skip_first: bool = False) -> list[slice]:
    """Which positions of each sample count.

    Args:
        mask: (batch, length), 1 for tokens and 0 for pads, all of them on one side.
        tokens: "all" or "last".
        skip_first: leave out the first real token.

    Raises:
        MeasureError: none counts.
    """
    found = []
    for row in mask.cpu().bool():
        (real,) = row.nonzero(as_tuple=True)
        start, stop = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
        start += skip_first
        if start >= stop:
            raise MeasureError(
                f"a sample of {len(real)} tokens has none to measure with skip_first={skip_first}; expected at least "
                "1. Leave short samples out"
            )
        found.append(slice(stop - 1 if tokens == "last" else start, stop))
    return found


def add_samples(
    sums: TokenSums,
    row: int,
    value: Value,
    before: torch.Tensor,
    after: torch.Tensor,
    chosen: Sequence[slice],
) -> None:
    """Add one batch's numbers to a row of sums.

    Args:
        sums: a table of one number a row.
        row: which one.
        value: see `Value`.
        before: (batch, length, width), any float dtype.
        after: the same shape.
        chosen: positions that count, of each sample.
    """
    # One sample at a time: float64 copies of a whole batch could be larger than the model. One transfer for all.
    found = [value(one[span], two[span]) for one, two, span in zip(before, after, chosen, strict=True)]
    counts = [len(numbers) for numbers in found]
    for numbers in torch.cat(found).cpu().split(counts):
        sums.add(row, numbers.sum(), len(numbers))


def double(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states in float64, on the CPU where the device has none.

    Squares of half precision overflow, and float32 loses the digits by which good layers differ.
    """
    return (hidden.cpu() if hidden.device.type == "mps" else hidden).double()
