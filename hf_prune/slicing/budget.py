"""How much goes: a share of the width as the papers count, or of the real parameters, solved for."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hf_prune.errors import ConfigError
from hf_prune.slicing.costs import Costs, Count, count
from hf_prune.slicing.families import PLAIN
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

    def solve(self, schedule: Schedule, multiple: int, *, least: float = 0.0) -> tuple[float, tuple[int, ...]]:
        """The schedule that keeps within the budget.

        Args:
            schedule: widths for a share of the width.
            multiple: step of the widths.
            least: smallest share that the schedule can take.

        Returns:
            The share of the width, and the widths.

        Raises:
            ConfigError: no width keeps within it.
        """
        if self.of == "width":
            return self.sparsity, schedule(self.sparsity)
        hidden, most = self.costs.hidden_size, (1 - self.sparsity) * self.costs.original
        # Mean widths that are multiples, ascending; more width is more parameters, so that the last good one is best.
        shares = [1 - mean / hidden for mean in range(multiple, hidden, multiple)]
        shares = [share for share in shares if share >= least - _ROUNDING]
        low, high = 0, len(shares)
        while low < high:
            middle = (low + high) // 2
            if self.count(schedule(shares[middle])).total <= most + 0.5:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            smallest = self.count(schedule(shares[0])).total if shares else self.costs.original
            reached = math.floor((1 - smallest / self.costs.original) * 1e4) / 1e4
            raise ConfigError(
                f"sparsity={self.sparsity} of the parameters of '{self.name}' cannot be reached by slicing: the "
                f"narrowest schedule in steps of {multiple} saves {reached}; expected at most that. Heads and "
                "intermediate sizes stay; drop layers for more"
            )
        share = shares[low - 1]
        return share, schedule(share)


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
