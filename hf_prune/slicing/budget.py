"""How much goes: a share of the width as the papers count, or of the real parameters, solved for."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hf_prune.errors import ConfigError
from hf_prune.slicing.costs import Costs, Count, count
from hf_prune.slicing.modeling import PLAIN
from hf_prune.slicing.options import SliceOptions
from hf_prune.slicing.points import Widths
from hf_prune.slicing.widths import point_widths

Schedule = Callable[[float], tuple[int, ...]]
"""A share of the width that goes on average -> one width a layer."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Budget:
    """What a schedule of widths may cost.

    Attributes:
        name: of the model, in errors.
        costs: what widths cost in it.
        sparsity: share that goes.
        of: what the share is of.
        options: of the surgery, `tied` resolved.
        plain: whether the result becomes a plain model of the base's family.
    """

    name: str
    costs: Costs
    sparsity: float
    of: Literal["width", "parameters"]
    options: SliceOptions
    plain: bool

    @property
    def shortcuts(self) -> bool:
        """Whether the basis changes between the points."""
        return self.options.basis == "per_block"

    def multiple(self, asked: int) -> int:
        """Of which widths must be multiples: a plain model's hidden size is one of its number of heads too."""
        return math.lcm(asked, self.costs.heads) if self.plain else asked

    def points(self, widths: tuple[int, ...]) -> Widths:
        """One width a layer -> the width at each point of the stream."""
        sliced_head = self.options.slice_head or not self.shortcuts
        hidden, parallel = self.costs.hidden_size, self.costs.parallel
        return Widths(*point_widths(widths, hidden, parallel=parallel, slice_head=sliced_head))

    def count(self, widths: tuple[int, ...]) -> Count:
        """Parameters of the model with these widths, one a layer."""
        tied = bool(self.options.tied)
        return count(self.costs, self.points(widths), shortcuts=self.shortcuts, tied=tied, plain=self.plain)

    def solve(self, schedule: Schedule, multiple: int) -> tuple[float, tuple[int, ...]]:
        """The schedule that takes the share: of the width as the paper rounds it, of parameters as near as can be.

        Args:
            schedule: widths for a share of the width.
            multiple: step of the widths.

        Returns:
            The share of the width, and the widths.

        Raises:
            ConfigError: the steps are too coarse for so small a share, or slicing cannot take so large a one.
        """
        if self.of == "width":
            return self.sparsity, schedule(self.sparsity)
        hidden = self.costs.hidden_size
        # Mean widths that are multiples, ascending: more width is more parameters.
        shares = [1 - mean / hidden for mean in range(multiple, hidden, multiple)]
        if not shares:
            raise ConfigError(f"steps of {multiple} leave no width below {hidden} of '{self.name}'; take smaller ones")
        low, high = 0, len(shares) - 1
        while low < high:  # the first that saves no more than asked, or the widest
            middle = (low + high) // 2
            if self._saved(schedule(shares[middle])) > self.sparsity + _ROUNDING:
                low = middle + 1
            else:
                high = middle
        near = [shares[index] for index in (low, low - 1) if index >= 0]
        share = min(near, key=lambda s: abs(self._saved(schedule(s)) - self.sparsity))
        saved, step = self._saved(schedule(share)), self._saved(schedule(shares[0]))
        asked = f"sparsity={self.sparsity} of the parameters of '{self.name}'"
        if saved <= 0:
            raise ConfigError(
                f"{asked} is less than slicing in steps of {multiple} can save: shortcuts cost parameters, so that it "
                f"saves {self._least_saved(schedule, shares):.4f} or more, or nothing. Ask for that, or drop layers"
            )
        if share == shares[0] and step < self.sparsity - _ROUNDING:
            raise ConfigError(
                f"{asked} is more than slicing can save: the narrowest schedule in steps of {multiple} saves "
                f"{step:.4f}. Heads and intermediate sizes stay; drop layers for more"
            )
        return share, schedule(share)

    def _least_saved(self, schedule: Schedule, shares: list[float]) -> float:
        """The least that a schedule saves which saves anything."""
        return min((saved for share in shares if (saved := self._saved(schedule(share))) > 0), default=0.0)

    def _saved(self, widths: tuple[int, ...]) -> float:
        return 1 - self.count(widths).total / self.costs.original


def make_budget(
    costs: Costs,
    *,
    name: str,
    model_type: str,
    sparsity: float,
    of: Literal["width", "parameters"],
    options: SliceOptions,
) -> Budget:
    """Resolve what the options leave open for this model.

    Args:
        costs: of the base.
        name: of it, in errors.
        model_type: of it.
        sparsity: share that goes.
        of: what it is a share of.
        options: as given.

    Raises:
        ConfigError: options that this model cannot have.
    """
    if options.tied and not costs.can_tie:
        raise ConfigError(
            f"tied=True: head and embeddings of '{name}' are no single table, or its norms subtract the mean, which "
            "the embeddings then must and the head must not; leave tied out"
        )
    stock = options.basis == "global" and model_type in PLAIN
    tied = (costs.can_tie and not stock) if options.tied is None else options.tied
    return Budget(name, costs, sparsity, of, dataclasses.replace(options, tied=tied), stock and not tied)


def break_even(budget: Budget, multiple: int) -> float | None:
    """Smallest share of the width, equal in all layers, from which on the model gets smaller; None where none does."""
    hidden, layers = budget.costs.hidden_size, len(budget.costs.layers)
    for mean in range(hidden - hidden % multiple, 0, -multiple):
        if budget.count((mean,) * layers).total <= budget.costs.original:
            return 1 - mean / hidden
    return None
